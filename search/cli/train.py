"""`grow train`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

Flag = Parameter(negative="")


def train(
    recipe: Path,
    /,
    *,
    gpus: int | None = None,
    strategy: str | None = None,
    folder: Path | None = None,
    resume: Annotated[bool, Flag] = False,
    device: Literal["recipe", "cuda", "cpu"] = "recipe",
    hardware: Path | None = None,
    meeting_s: float = 60.0,
    json: Annotated[bool, Flag] = False,
) -> int:
    """Train one recipe on several devices, growing and pruning on the way.

    Example: grow train runs/mnist-1/trials/0003 --gpus 2

    On several hosts: torchrun --nnodes 2 --nproc-per-node 1 --master-addr ADDRESS --node-rank 0 -m search.cli train RECIPE, and
    the same with --node-rank 1 on the other.

    Parameters
    ----------
    recipe
        A recipe's JSON file, or the folder of a trial or an earlier training.
    gpus
        Ranks, one a device; by default as many as the recipe's devices, or the plan's. torchrun says it otherwise.
    strategy
        How the network is divided: a name, or the JSON file of grow plan --save; by default the recipe's, or data where that is single.
    folder
        Where checkpoints, metrics and the resulting network go; by default a folder of its own in ./trained.
    resume
        Go on from the folder's last checkpoint, whatever number of ranks saved it.
    device
        cuda or cpu, where it shall not be the recipe's.
    hardware
        Profile by which kernels are chosen; by default the one of the recipe's run, if it is part of one.
    meeting_s
        Seconds that ranks on other hosts have to come.
    json
        Print the result as one JSON object on stdout, and nothing else there.
    """
    from search.launch import Wanted, launch

    result = launch(Wanted(recipe, gpus, strategy, folder, resume, device, hardware, meeting_s))
    if result is None:
        return 0
    if json:
        from search.cli.output import print_json

        print_json(result)
    else:
        print(summary(result))
    return 0


def summary(result: Mapping[str, Any]) -> str:
    """The result in words."""
    facts = [
        f"accuracy on validation data {100 * result['accuracy']:.2f} %",
        f"density {100 * result['density']:.2f} %",
        f"{result['connections']:,} connections",
    ]
    if result["measured_samples_per_s"] is not None:
        facts.append(f"measured {result['measured_samples_per_s']:,.0f} samples/s")
    return f"trained on {result['ranks']} ranks, strategy {result['strategy']}: {', '.join(facts)}\nnetwork: {result['network']}"
