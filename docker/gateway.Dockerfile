# syntax=docker/dockerfile:1.7
# The gateway: no torch, no GPU, no root. Its rewards come from a reward server.
#
#   docker build -f docker/gateway.Dockerfile --build-arg REVISION=$(git rev-parse HEAD) -t ratchet-gateway .
ARG PYTHON=python:3.11.14-slim-bookworm@sha256:65a93d69fa75478d554f4ad27c85c1e69fa184956261b4301ebaf6dbb0a3543d

FROM ${PYTHON} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
RUN python -m venv /opt/ratchet
# Dependencies before the code: a change of the code does not download them again.
COPY pyproject.toml constraints.txt ./
RUN --mount=type=cache,target=/root/.cache/pip \
    python -c "import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
print(*(d for d in p['dependencies'] + p['optional-dependencies']['otel'] if not d.startswith('ratchet')), sep='\n')" > requirements.txt \
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
       --output-reproducible --of JSON -o /sbom/ratchet-gateway.cdx.json

FROM ${PYTHON}
ARG REVISION=unknown
LABEL org.opencontainers.image.title="ratchet-gateway" \
      org.opencontainers.image.description="OpenAI-compatible chat API that answers with the best of N candidates" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="docker.io/library/python:3.11.14-slim-bookworm"
# A number, so that Kubernetes sees that the user is not root. It writes only to /var/lib/ratchet and /tmp; everything else may be read-only.
RUN groupadd --gid 10001 ratchet \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin ratchet \
    && install -d -o 10001 -g 10001 /var/lib/ratchet /var/lib/ratchet/spool
COPY --from=build /opt/ratchet /opt/ratchet
COPY --from=sbom /sbom /usr/share/sbom
COPY docker/healthcheck.py /usr/local/lib/ratchet/healthcheck.py
ENV PATH=/opt/ratchet/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp \
    GATEWAY_HOST=0.0.0.0 GATEWAY_PORT=8000 GATEWAY_JOURNAL__SPOOL_DIR=/var/lib/ratchet/spool
USER 10001:10001
WORKDIR /tmp
VOLUME ["/var/lib/ratchet"]
EXPOSE 8000
# /health/live, not ready: a backend or Redis that is away is no reason for a restart. Balancers ask /health/ready.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "/usr/local/lib/ratchet/healthcheck.py", "http://127.0.0.1:8000/health/live"]
ENTRYPOINT ["python", "-m", "gateway"]
CMD ["serve"]
