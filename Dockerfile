# fedsea_mq with everything that broker, trunk node, gateway and aggregator need, for CPUs or GPUs:
#
#   docker build -t fedsea:0.1.0-cpu .
#   docker build -t fedsea:0.1.0-gpu --build-arg TORCH=2.13.0+cu130 \
#     --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .
#   docker run --rm fedsea:0.1.0-cpu demo
#
# A GPU image needs no CUDA base: torch brings its libraries, the host's driver comes from the runtime.
ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS build
ARG TORCH=2.13.0+cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /src
RUN python -m venv /opt/fedsea
ENV PATH=/opt/fedsea/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN pip install "torch==${TORCH}" --extra-index-url "${TORCH_INDEX}"
COPY requirements.lock pyproject.toml README.md LICENSE ./
# The versions of the lock file alone, and of those what the package asks for.
COPY fedsea_mq fedsea_mq
COPY broker broker
COPY nodes nodes
COPY configs configs
RUN sed 's/ *\\$//; /^ *--hash/d; /^#/d' requirements.lock > constraints.txt \
    && pip install --constraint constraints.txt ".[gateway,otel]"

FROM python:${PYTHON}-slim
RUN useradd --uid 10001 --user-group --home-dir /var/lib/fedsea --create-home fedsea
COPY --from=build /opt/fedsea /opt/fedsea
ENV PATH=/opt/fedsea/bin:$PATH \
    NUMBA_CACHE_DIR=/tmp/numba \
    TOKENIZERS_PARALLELISM=false
USER 10001:10001
WORKDIR /var/lib/fedsea
ENTRYPOINT ["fedsea"]
CMD ["--help"]
