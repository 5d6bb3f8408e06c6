# syntax=docker/dockerfile:1.7
# The reward server: one model for all gateways. torch's wheels bring CUDA; the driver is the host's.
#
#   docker build -f docker/reward.Dockerfile --build-arg REVISION=$(git rev-parse HEAD) -t ratchet-reward .
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
print(*(d for d in p['dependencies'] + p['optional-dependencies']['reward'] if not d.startswith('ratchet')), sep='\n')" > requirements.txt \
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
       --output-reproducible --of JSON -o /sbom/ratchet-reward.cdx.json

FROM ${PYTHON}
ARG REVISION=unknown
LABEL org.opencontainers.image.title="ratchet-reward" \
      org.opencontainers.image.description="The reward model as a service, over the protocol of vLLM's /classify" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="docker.io/library/python:3.11.14-slim-bookworm"
# A number, so that Kubernetes sees that the user is not root. It writes only to /var/cache/huggingface and /tmp; everything else may be read-only.
RUN groupadd --gid 10001 ratchet \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin ratchet \
    && install -d -o 10001 -g 10001 /var/cache/huggingface
COPY --from=build /opt/ratchet /opt/ratchet
COPY --from=sbom /sbom /usr/share/sbom
COPY docker/healthcheck.py /usr/local/lib/ratchet/healthcheck.py
ENV PATH=/opt/ratchet/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp \
    HF_HOME=/var/cache/huggingface NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    GATEWAY_REWARD__HOST=0.0.0.0 GATEWAY_REWARD__PORT=8001
USER 10001:10001
WORKDIR /tmp
VOLUME ["/var/cache/huggingface"]
EXPOSE 8001
# Its first start downloads the model.
HEALTHCHECK --interval=10s --timeout=5s --start-period=600s --retries=3 \
    CMD ["python", "/usr/local/lib/ratchet/healthcheck.py", "http://127.0.0.1:8001/health"]
ENTRYPOINT ["python", "-m", "gateway"]
CMD ["reward"]
