"""`jetllm bundle`: carry a release, signed, to appliances; or one build, in one file, to another board."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from inference.cli.common import daemon_or_service, json_flag, model_argument, variant_option
from inference.cli.release import create, golden, keygen, reporter, trusted_option, verify
from inference.console import download_bar, print_json, print_note
from inference.settings import Settings, load_settings


@click.group()
def bundle() -> None:
    """Carry a release to appliances (create, verify, import), or one build to another board (export, import).

    \b
    Examples:
      jetllm bundle keygen release
      jetllm bundle verify jetllm-1.0.0.tar --trusted release.pub
      jetllm bundle export smollm2-135m-instruct
      jetllm bundle import smollm2-135m-instruct.jetllm.tar
    """


for command in (keygen, create, golden, verify):
    bundle.add_command(command)


@bundle.command("export")
@model_argument
@variant_option
@click.option(
    "--output", "-o", type=click.Path(path_type=Path), help="The file; by default MODEL.jetllm.tar."
)
@json_flag
@click.pass_obj
def export_bundle(
    config: Path | None, model: str, variant: str | None, output: Path | None, as_json: bool
) -> None:
    """Write the build of MODEL, with the sum of every file, into one file; by default the first that stands.

    \b
    Example:
      jetllm bundle export smollm2-135m-instruct --output smollm2.jetllm.tar
    """
    with daemon_or_service(config, {"offline": True}) as (_, service), download_bar(model) as progress:
        row = service.building.export(model, variant, output, progress)
    if as_json:
        print_json(row)
    else:
        print_note(f"{row['model']}/{row['variant']}: {row['bytes'] / 1e6:.0f} MB in {row['path']}")


@bundle.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--weights-only",
    "leave_library",
    is_flag=True,
    help="Of a build: leave another machine's library behind.",
)
@trusted_option
@click.option("--any-machine", is_flag=True, help="Of a release: take it where it does not run, too.")
@json_flag
@click.pass_obj
def import_bundle(
    config: Path | None, file: Path, leave_library: bool, trusted: Path, any_machine: bool, as_json: bool
) -> None:
    """Take a build, or the models of a release, from FILE, once everything in it has been checked.

    Of a release (a directory, or its .tar) weights and builds go to the store, registry and evidence to
    the state directory. Its image is not touched: that is for `jetllm update`.

    \b
    Examples:
      jetllm bundle import smollm2-135m-instruct.jetllm.tar
      jetllm bundle import jetllm-1.0.0.tar --trusted release.pub
    """
    from inference.appliance.bundle import is_release

    if is_release(file):
        _import_release(load_settings({"offline": True}, config=config), file, trusted, any_machine, as_json)
        return
    with daemon_or_service(config, {"offline": True}) as (_, service), download_bar(file.name) as progress:
        row = service.building.take(file, leave_library=leave_library, progress=progress).to_dict()
    if as_json:
        print_json(row)
        return
    name = f"{row['model']}/{row['variant']}"
    print_note(f"{name}: here" + (f"; now: jetllm build {row['model']}" if row["portable"] else ""))


def _import_release(settings: Settings, path: Path, trusted: Path, any_machine: bool, as_json: bool) -> None:
    from inference.appliance.bundle import open_bundle, why_unfit
    from inference.appliance.errors import BundleError
    from inference.appliance.manifest import STORE
    from inference.artifacts.cargo import Sum
    from inference.bundling import Bundling
    from inference.device.detect import detect

    device = detect()
    with (
        download_bar(path.name) as progress,
        open_bundle(path, trusted, workspace=settings.cache_path, report=reporter(progress)) as opened,
    ):
        manifest, directory = opened.manifest, opened.directory
        unfit = why_unfit(manifest, device, unknown_fits=device.in_container)
        if unfit is not None and not any_machine:
            raise BundleError(f"{path.name}: {unfit}", hint="to take its models all the same: --any-machine")
        taken = Bundling(settings).take(
            directory / STORE,
            {name: Sum(each.bytes, each.sha256) for name, each in manifest.cargo.items()},
            registry=directory / manifest.registry if manifest.registry else None,
            evidence=directory / manifest.evidence if manifest.evidence else None,
            progress=progress,
        )
    if as_json:
        print_json({"version": manifest.version, "bundle": manifest.digest, **asdict(taken)})
        return
    for model in manifest.models:
        print_note(f"{model.model}/{model.variant}: here")
    print_note(
        f"{manifest.version}: {taken.copied_bytes / 1e6:.0f} MB taken, {taken.standing_bytes / 1e6:.0f} MB "
        f"were here; measurements: {taken.evidence} new; registry: {'new' if taken.registry else 'as it was'}"
    )
