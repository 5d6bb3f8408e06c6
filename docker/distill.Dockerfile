# syntax=docker/dockerfile:1.7
# The night and the guard (schedule, run, watch, …). torch's wheels bring CUDA; the driver is the host's.
#
#   docker build -f docker/distill.Dockerfile --build-arg REVISION=$(git rev-parse HEAD) -t ratchet-distill .
ARG PYTHON=python:3.11.14-slim-bookworm@sha256:65a93d69fa75478d554f4ad27c85c1e69fa184956261b4301ebaf6dbb0a3543d

FROM ${PYTHON} AS build
# URL of CPU builds of torch: https://download.pytorch.org/whl/cpu. Unset: PyPI's build, which brings CUDA.
ARG PIP_EXTRA_INDEX_URL=""
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
RUN python -m venv /opt/ratchet
# Dependencies before the code: a change of the code does not download them again.
COPY pyproject.toml constraints.txt ./
RUN --mount=type=cache,target=/root/.cache/pip \
    python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
print(*(d for d in p['dependencies'] + p['optional-dependencies']['reward'] + p['optional-dependencies']['distill'] if not d.startswith('ratchet')), sep='\n')" > requirements.txt \
    && /opt/ratchet/bin/pip install -c constraints.txt -r requirements.txt
COPY README.md LICENSE ./
COPY gateway gateway
COPY distill distill
RUN /opt/ratchet/bin/pip install --no-deps . && /opt/ratchet/bin/pip check

# List of the image's parts as CycloneDX, in /usr/share/sbom.
FROM ${PYTHON} AS sbom
WORKDIR /src
COPY docker/sbom-requirements.txt ./
RUN pip install --no-cache-dir --no-deps -r sbom-requirements.txt
COPY pyproject.toml ./
COPY --from=build /opt/ratchet /opt/ratchet
RUN mkdir /sbom \
    && cyclonedx-py environment /opt/ratchet/bin/python --pyproject pyproject.toml \
       --output-reproducible --of JSON -o /sbom/ratchet-distill.cdx.json

FROM ${PYTHON}
ARG REVISION=unknown
LABEL org.opencontainers.image.title="ratchet-distill" \
      org.opencontainers.image.description="The nightly path: teaches the model its own winners, so that N may fall" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="docker.io/library/python:3.11.14-slim-bookworm"
# A number, so that Kubernetes sees that the user is not root. It writes only to /var/lib/ratchet, /adapters, /var/cache/huggingface and /tmp; everything else may be read-only.
RUN groupadd --gid 10001 ratchet \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin ratchet \
    && install -d -o 10001 -g 10001 /var/lib/ratchet /var/lib/ratchet/policy /adapters /var/cache/huggingface
COPY --from=build /opt/ratchet /opt/ratchet
COPY --from=sbom /sbom /usr/share/sbom
COPY docker/adapters /usr/local/lib/ratchet/adapters
ENV PATH=/opt/ratchet/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp \
    HF_HOME=/var/cache/huggingface NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    GATEWAY_JOURNAL__SPOOL_DIR=/var/lib/ratchet/policy \
    DISTILL_DATASET__ARCHIVE_DIR=/var/lib/ratchet/archive DISTILL_EVALUATION__DRAWS_DIR=/var/lib/ratchet/draws \
    DISTILL_PROMOTION__ADAPTERS_DIR=/adapters DISTILL_PROMOTION__GGUF_DIR=/adapters/gguf \
    DISTILL_PROMOTION__GUARD_FILE=/var/lib/ratchet/guard.json DISTILL_NIGHT__RUNS_DIR=/var/lib/ratchet/runs \
    DISTILL_NIGHT__METRICS_FILE=/var/lib/ratchet/metrics/night.prom
USER 10001:10001
WORKDIR /tmp
VOLUME ["/var/lib/ratchet", "/adapters", "/var/cache/huggingface"]
# It listens nowhere: the night reports by its exit code and its metrics.
HEALTHCHECK NONE
ENTRYPOINT ["python", "-m", "distill"]
CMD ["schedule"]
