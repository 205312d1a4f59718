# cero_rl for training in a container. Not root inside; runs/ is the volume to mount.
#
#   docker build -t cero_rl .                        on CPUs
#   docker build -t cero_rl:cuda --build-arg BASE=nvidia/cuda:13.0.1-devel-ubuntu24.04 --build-arg EXTRAS=vllm .
#   docker run --rm -v "$PWD/runs:/opt/cero_rl/runs" cero_rl train quickstart_cpu
#   docker run --rm --gpus all --ipc host -v "$PWD/runs:/opt/cero_rl/runs" cero_rl:cuda train my.yaml
#
# The CUDA base must be a devel image: the advantage kernel is compiled in it. Where pip's default torch
# is not the wanted one (a CPU image without CUDA's libraries), name an index: --build-arg PIP_EXTRA_INDEX_URL=...
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE}
SHELL ["/bin/bash", "-o", "pipefail", "-c"]

# A base without a Python of 3.11 or later, as CUDA's have none, gets that of its distribution.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ make \
    && { python3 -c 'import ensurepip, sys, venv; assert sys.version_info >= (3, 11)' 2>/dev/null \
         || apt-get install -y --no-install-recommends python3 python3-dev python3-venv; } \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 cero \
    && install -d -o cero -g cero /opt/cero_rl /opt/cero_rl/runs

USER 10001
WORKDIR /opt/cero_rl
ARG EXTRAS=""
ARG PIP_EXTRA_INDEX_URL=""
ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1 PATH=/opt/cero_rl/.venv/bin:$PATH

# The packages first, in a layer that a change of the code leaves as it is.
COPY --chown=cero:cero Makefile pyproject.toml ./
COPY --chown=cero:cero requirements requirements
RUN make .venv/.stamp-runtime
COPY --chown=cero:cero . .
RUN make .venv/.stamp-package \
    && { test -z "$EXTRAS" || .venv/bin/python -m pip install --no-build-isolation -e ".[$EXTRAS]"; } \
    && rm -rf build && cero-rl --version

VOLUME /opt/cero_rl/runs
ENTRYPOINT ["cero-rl"]
CMD ["--help"]
