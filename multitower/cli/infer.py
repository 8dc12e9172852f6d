"""`multitower infer`: one request to a running daemon."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from multitower.cli.connection import asks_daemon
from multitower.exit_codes import Exit

if TYPE_CHECKING:
    from multitower import Client


@click.command()
@click.argument("model")
@click.option(
    "--input", "files", multiple=True, metavar="NAME=FILE.npy", help="Read an input from a numpy file. Repeatable."
)
@click.option("--from", "source", metavar="FILE", help="Read inputs from a JSON or .npz file; - for JSON on stdin.")
@click.option(
    "--output", type=click.Path(path_type=Path), metavar="FILE", help="Write the outputs to FILE, .npz or .json."
)
@click.option("--only", "wanted", multiple=True, metavar="NAME", help="Request only this output. Repeatable.")
@click.option(
    "--model-version",
    default="",
    metavar="VERSION",
    help="Version of the model.  [default: the highest that is served]",
)
@click.option(
    "--version-label", default="", metavar="LABEL", help="Label from the model's version_labels, instead of a version."
)
@click.option("--signature", default="", metavar="NAME", help="Signature of the model.  [default: its default one]")
@click.option(
    "--nan",
    type=click.Choice(["null", "string", "literal"]),
    default="null",
    show_default=True,
    help="Write NaN and infinities, which JSON has no numbers for, as null, as strings ('NaN', 'Infinity'), or "
    "without quotes, which is not JSON.",
)
@asks_daemon
def infer(
    client: Client,
    model: str,
    files: tuple[str, ...],
    source: str | None,
    output: Path | None,
    wanted: tuple[str, ...],
    model_version: str,
    version_label: str,
    signature: str,
    nan: str,
) -> int:
    """Send MODEL one request, and print its outputs as JSON.

    Without --input and --from, inputs are read from stdin as JSON: values by name, or the Open Inference Protocol's
    `inputs`. Numbers are converted to the datatypes that the model declares. Elements of BYTES are strings, or
    {"b64": "…"}.

    \b
      echo '{"x": [[0, 1, 2]]}' | multitower infer MODEL
      multitower infer MODEL --input x=x.npy --output answer.npz
    """  # noqa: D301 - the escape keeps click from folding these lines
    from multitower.tools import tensor_files

    if output is not None and output.suffix not in (".npz", ".json"):
        raise click.BadParameter("the file's name must end in .npz or .json", param_hint="'--output'")
    if output is not None:
        tensor_files.check_output(output)
    non_finite = tensor_files.NonFinite(nan)
    metadata = client.metadata(model, model_version, version_label=version_label)
    # The daemon refuses a signature that does not exist.
    declaring = metadata.get("signatures", {}).get(signature, metadata)
    declared = {tensor["name"]: tensor["datatype"] for tensor in declaring["inputs"]}
    inputs = tensor_files.read_inputs(source if source or files else tensor_files.STDIN, files, declared)
    outputs = client.infer(
        model,
        inputs,
        outputs=wanted or None,
        version=model_version,
        version_label=version_label,
        signature=signature,
    )
    if output is not None:
        tensor_files.save_outputs(output, outputs, non_finite)
    else:
        click.echo(tensor_files.to_json(outputs, non_finite))
    return Exit.OK
