#!/bin/sh
# Makes a release of an image that the container engine has, and checks it:
#
#   IMAGE=jetllm:current VERSION=1.0.0 KEY=release MODELS="smollm2-135m-instruct" OUTPUT=jetllm-1.0.0.tar \
#     containers/bundle/make.sh
#
# ENGINE is docker or podman, JETLLM the command. Further words go to `jetllm bundle create`, such as
# --golden golden.json --board orin-nano-8gb. The image's archive is written beside OUTPUT, and removed.
set -eu

: "${IMAGE:?the name of an image, such as jetllm:current}"
: "${VERSION:?the version of the release, such as 1.0.0}"
: "${KEY:?the private key that signs: jetllm bundle keygen release}"
: "${OUTPUT:?a new directory, or a new file that ends in .tar}"
ENGINE=${ENGINE:-docker}
JETLLM=${JETLLM:-jetllm}

work=$(mktemp -d "$(dirname "$OUTPUT")/.tmp-image-XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

case $ENGINE in
  podman) podman save --quiet --format docker-archive --output "$work/image.tar" "$IMAGE" ;;
  docker) docker save --output "$work/image.tar" "$IMAGE" ;;
  *)
    echo "make.sh: ENGINE: expected docker or podman, got $ENGINE" >&2
    exit 2
    ;;
esac

for model in ${MODELS:-}; do
  set -- --model "$model" "$@"
done
"$JETLLM" bundle create --version "$VERSION" --image "$work/image.tar" --image-reference "$IMAGE" \
  --key "$KEY" --output "$OUTPUT" "$@"
"$JETLLM" bundle verify "$OUTPUT" --trusted "$KEY.pub"
