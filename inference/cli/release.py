"""The commands of whoever makes releases: `jetllm bundle keygen`, `create`, `golden` and `verify`."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from inference.cli.common import json_flag, own_service
from inference.console import download_bar, print_json, print_line, print_note, print_table
from inference.errors import InvalidRequestError
from inference.settings import Settings, load_settings

if TYPE_CHECKING:
    from inference.appliance.manifest import Golden, Manifest
    from inference.artifacts.sources import Progress
    from inference.bundling import Chosen

_PATH = click.Path(path_type=Path)

trusted_option = click.option(
    "--trusted",
    type=_PATH,
    default=Path("/etc/jetllm/trusted.d"),
    show_default=True,
    help="Of a release: the signer's public key, or a directory of such (*.pub).",
)
_models_option = click.option(
    "--model", "models", multiple=True, metavar="NAME[/VARIANT]", help="A model to take along; repeatable."
)
_prompt_option = click.option(
    "--golden-prompt", "prompt", help="What golden tokens go on from, given to the models as it is."
)


@click.command()
@click.argument("private", type=_PATH)
@json_flag
def keygen(private: Path, as_json: bool) -> None:
    """Make the keys of whoever signs releases: PRIVATE, for him alone, and PRIVATE.pub, for the devices.

    \b
    Example:
      jetllm bundle keygen release
    """
    from inference.appliance.signing import generate_keys

    public = generate_keys(private)
    if as_json:
        print_json({"private": str(private), "public": str(public)})
    else:
        print_note(
            f"{private}: signs releases; it stays here\n{public}: for the devices' /etc/jetllm/trusted.d"
        )


@click.command()
@click.option("--version", required=True, help="The release's own, such as 1.2.0.")
@click.option("--image", type=_PATH, required=True, help="The image's archive, as docker save writes it.")
@click.option("--image-reference", "reference", help="The image's name; by default the archive's own.")
@_models_option
@click.option("--golden", type=_PATH, help="Golden tokens of the board, from jetllm bundle golden.")
@click.option("--no-golden", is_flag=True, help="Promise no answer: an update asks for any one token then.")
@_prompt_option
@click.option("--evidence", type=_PATH, help="Measurements to take along (evidence.jsonl).")
@click.option("--registry", type=_PATH, help="The models.json to take along; by default the one in force.")
@click.option("--l4t", multiple=True, help="A release of L4T that it runs on; by default the image's.")
@click.option("--compute-capability", multiple=True, help="Of a GPU that it runs on; by default the image's.")
@click.option("--board", "boards", multiple=True, help="A board that it is for; by default any.")
@click.option("--key", type=_PATH, required=True, help="The private key that signs (jetllm bundle keygen).")
@click.option("--output", "-o", type=_PATH, required=True, help="A new directory, or a new .tar.")
@json_flag
@click.pass_obj
def create(config: Path | None, /, as_json: bool, **given: Any) -> None:
    """Make a release: an image with its models, what they must answer, and the signature over all of it.

    Weights and builds come out of this machine's store, golden tokens from its engines, unless --golden
    has them. The release is there whole, or not at all.

    \b
    Example:
      jetllm bundle create --version 1.0.0 --image image.tar --model smollm2-135m-instruct \\
        --key release -o jetllm-1.0.0.tar
    """
    from inference.appliance.creating import Contents, create_bundle
    from inference.appliance.image_archive import read_image
    from inference.appliance.manifest import Model
    from inference.appliance.signing import load_private
    from inference.bundling import Bundling, check_beside

    settings = load_settings({"offline": True}, config=config)
    registry = given["registry"] or settings.registry_path
    load_private(given["key"])  # what costs nothing is looked at first
    check_beside(registry, given["evidence"])
    bundling = Bundling(settings)
    chosen = bundling.choose(list(given["models"]))
    image = read_image(given["image"])
    golden = _golden(settings, chosen, image.arch, given)
    with bundling.cargo(chosen) as store, download_bar(given["output"].name) as progress:
        contents = Contents(
            version=given["version"],
            image=given["image"],
            reference=given["reference"],
            models=[Model(each.model, each.variant) for each in chosen],
            golden=golden,
            store=store,
            l4t=given["l4t"] or None,
            compute_capability=given["compute_capability"] or None,
            boards=given["boards"],
            evidence=given["evidence"],
            registry=registry,
        )
        manifest = create_bundle(contents, given["output"], given["key"], reporter(progress), image=image)
    if as_json:
        print_json({"path": str(given["output"]), **_described(manifest)})
    else:
        print_note(f"{given['output']}: {_summary(manifest)}")


@click.command()
@_models_option
@_prompt_option
@click.option("--output", "-o", type=_PATH, required=True, help="The file for bundle create --golden.")
@json_flag
@click.pass_obj
def golden(
    config: Path | None, models: tuple[str, ...], prompt: str | None, output: Path, as_json: bool
) -> None:
    """Let each model answer greedily, on the board that a release is for, and write down what it said.

    \b
    Example:
      jetllm bundle golden --model smollm2-135m-instruct -o golden.json
    """
    from inference.artifacts.files import write_atomic
    from inference.bundling import Bundling

    settings = load_settings({"offline": True}, config=config)
    rows = _answers(settings, Bundling(settings).choose(list(models)), prompt)
    write_atomic(output, json.dumps(rows, indent=1).encode() + b"\n")
    output.chmod(0o644)
    if as_json:
        print_json(rows)
        return
    for row in rows:
        print_note(f"{row['model']}/{row['variant']}: {row['prompt']!r} -> {row['text']!r}")


@click.command()
@click.argument("path", type=_PATH)
@trusted_option
@json_flag
def verify(path: Path, trusted: Path, as_json: bool) -> None:
    """Check the signature of a release, and every byte of it, and show what is in it.

    \b
    Example:
      jetllm bundle verify jetllm-1.0.0.tar --trusted release.pub
    """
    from inference.appliance.bundle import check_bundle, why_unfit
    from inference.device.detect import detect

    with download_bar(path.name) as progress:
        manifest, signer = check_bundle(path, trusted, reporter(progress))
    unfit = why_unfit(manifest, detect())
    if as_json:
        print_json({"path": str(path), "signer": signer, "unfit": unfit, **_described(manifest)})
        return
    print_line(f"{path.name}: {_summary(manifest)}")
    print_line(f"signed by {signer}; every byte is the signer's")
    print_line(f"on this machine: {unfit or 'it runs'}")
    texts = {(each.model, each.variant): repr(each.prompt + each.text) for each in manifest.golden}
    names = [(each.model, each.variant) for each in manifest.models]
    print_table(("model", "variant", "must answer"), [(*name, texts.get(name)) for name in names])


def reporter(progress: Callable[[Progress], None]) -> Callable[[str, int, int], None]:
    """Return what shows a bundle's progress in the bar of *progress*."""
    from inference.artifacts.sources import Progress

    return lambda what, done_bytes, total_bytes: progress(Progress(what, done_bytes, total_bytes, None, None))


def _golden(settings: Settings, chosen: list[Chosen], arch: str, given: dict[str, Any]) -> list[Golden]:
    """Return what the models must answer: as it was written down on the board, or as they do here."""
    from inference.appliance.manifest import golden_of, read_golden

    if given["no_golden"]:
        return []
    if given["golden"] is not None:
        return list(read_golden(given["golden"]))
    if chosen and arch != platform.machine():
        raise InvalidRequestError(
            f"the image is for {arch}; models may answer otherwise there than here ({platform.machine()})",
            hint="on the board: jetllm bundle golden --model NAME -o golden.json; here: --golden golden.json",
            param="golden",
        )
    return [golden_of(row) for row in _answers(settings, chosen, given["prompt"])]


def _answers(settings: Settings, chosen: list[Chosen], prompt: str | None) -> list[dict[str, Any]]:
    from inference.bundling import PROMPT, golden_answer

    if not chosen:
        return []
    with own_service(settings) as service:
        rows = [golden_answer(service, each, prompt or PROMPT) for each in chosen]
    return [row for row in rows if row is not None]


def _described(manifest: Manifest) -> dict[str, Any]:
    return {"bundle": manifest.digest, "total_bytes": manifest.total_bytes, **manifest.to_dict()}


def _summary(manifest: Manifest) -> str:
    wanted = (
        ("L4T", manifest.l4t),
        ("compute capability", manifest.compute_capability),
        ("board", manifest.boards),
    )
    only = "".join(f", {what} {' or '.join(those)}" for what, those in wanted if those)
    count = len(manifest.models)
    return (
        f"release {manifest.version} for {manifest.arch}{only}: image {manifest.image.reference}, "
        f"{count} model{'' if count == 1 else 's'}, {manifest.total_bytes / 1e6:.0f} MB"
    )
