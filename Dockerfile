# Three images: `server` (control plane, no torch), `worker` (AIMET on GPUs), and `all-in-one` (both,
# for one machine). docs/install-kubernetes.md says how to build them, with and without Docker.
#
# BASE has Python 3.11 as `python3` with venv, glibc 2.34 or newer, and CA certificates.
ARG BASE=docker.io/library/python:3.11-slim-bookworm

# --- what builds, and is in no image ------------------------------------------------------------
FROM ${BASE} AS tools
RUN python3 -m venv /opt/tools
COPY requirements/build.txt /opt/tools/
RUN /opt/tools/bin/python -m pip install --no-cache-dir --disable-pip-version-check \
    --only-binary :all: --require-hashes -r /opt/tools/build.txt
COPY deploy/images/install /opt/tools/

FROM tools AS wheel
WORKDIR /source
COPY LICENSE README.md pyproject.toml ./
COPY client client
COPY service service
RUN /opt/tools/bin/uv --no-config build --offline --wheel --no-build-isolation \
    --python /opt/tools/bin/python --out-dir /wheel

# --- what every image begins with ---------------------------------------------------------------
FROM ${BASE} AS runtime
# No pip: libraries come from the lock files alone, which stay beside them. They are copied rather than
# mounted, for what is mounted does not count in every builder's cache.
RUN python3 -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11) and "BASE needs Python 3.11")' \
    && python3 -m venv --without-pip /opt/lighten \
    && groupadd --gid 65532 lighten \
    && useradd --uid 65532 --gid lighten --no-log-init --no-create-home \
        --home-dir /var/lib/lighten --shell /usr/sbin/nologin lighten \
    && install -d -o lighten -g lighten /var/lib/lighten
ENV PATH=/opt/lighten/bin:${PATH} \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1

# --- control plane ------------------------------------------------------------------------------
FROM runtime AS server
COPY requirements/server.txt /opt/lighten/locks/
RUN --mount=type=cache,target=/root/.cache/uv \
    --mount=type=bind,from=tools,source=/opt/tools,target=/opt/tools \
    /opt/tools/install --require-hashes -r /opt/lighten/locks/server.txt
COPY --from=wheel /wheel/ /opt/lighten/wheel/
RUN --mount=type=bind,from=tools,source=/opt/tools,target=/opt/tools \
    /opt/tools/install /opt/lighten/wheel/*.whl
ENV HOME=/var/lib/lighten \
    LIGHTEN_DATA_DIR=/var/lib/lighten
WORKDIR /var/lib/lighten
# gRPC, signed URLs of the local folder, metrics and probes.
EXPOSE 8470 8471 8472
USER 65532:65532
ENTRYPOINT ["lighten-server"]
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Lighten server" \
    org.opencontainers.image.description="Control plane of Lighten, which quantizes neural networks" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}"

# --- worker -------------------------------------------------------------------------------------
FROM runtime AS worker-libraries
# CUDA is most of the image: a layer of its own, which other libraries do not renew.
COPY requirements/worker-cuda.txt /opt/lighten/locks/
RUN --mount=type=cache,target=/root/.cache/uv \
    --mount=type=bind,from=tools,source=/opt/tools,target=/opt/tools \
    /opt/tools/install --require-hashes -r /opt/lighten/locks/worker-cuda.txt
# ONNX Runtime finds CUDA beside torch by the loader's cache; the driver alone is not in the image.
COPY requirements/worker-gpu.txt /opt/lighten/locks/
RUN --mount=type=cache,target=/root/.cache/uv \
    --mount=type=bind,from=tools,source=/opt/tools,target=/opt/tools \
    /opt/tools/install --require-hashes -r /opt/lighten/locks/worker-gpu.txt \
    && cd /opt/lighten/lib/python3.11/site-packages \
    && find "$PWD/nvidia" -name lib > /etc/ld.so.conf.d/cuda.conf \
    && ldconfig \
    && test "$(ldd onnxruntime/capi/libonnxruntime_providers_cuda.so \
        | awk '/not found/ {print $1}')" = libcuda.so.1
# Which GPUs a container sees is for the cluster's device plugin to say, or for `docker run --gpus`.
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility

FROM worker-libraries AS worker
COPY --from=wheel /wheel/ /opt/lighten/wheel/
RUN --mount=type=bind,from=tools,source=/opt/tools,target=/opt/tools \
    /opt/tools/install /opt/lighten/wheel/*.whl
ENV HOME=/tmp
USER 65532:65532
ENTRYPOINT ["python", "-P", "-m", "lighten_service.worker.main"]
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Lighten worker" \
    org.opencontainers.image.description="Quantizes one neural network with AIMET, then ends" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}"

# --- both, for one machine ----------------------------------------------------------------------
FROM worker-libraries AS all-in-one
COPY requirements/server.txt /opt/lighten/locks/
RUN --mount=type=cache,target=/root/.cache/uv \
    --mount=type=bind,from=tools,source=/opt/tools,target=/opt/tools \
    /opt/tools/install --require-hashes -r /opt/lighten/locks/server.txt
COPY --from=wheel /wheel/ /opt/lighten/wheel/
RUN --mount=type=bind,from=tools,source=/opt/tools,target=/opt/tools \
    /opt/tools/install /opt/lighten/wheel/*.whl
ENV HOME=/var/lib/lighten \
    LIGHTEN_DATA_DIR=/var/lib/lighten
WORKDIR /var/lib/lighten
EXPOSE 8470 8471 8472
USER 65532:65532
ENTRYPOINT ["lighten-server"]
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Lighten" \
    org.opencontainers.image.description="Quantizes neural networks with AIMET on one machine" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}"
