"""One of several processes of a test: runs the cases in argv[1] (JSON: name -> spec), one after another."""

import json
import sys
from pathlib import Path

import torch

from xtuner.config.dump import dump_yaml
from xtuner.config.spec import RunSpec
from xtuner.engine.strategy.world import open_world
from xtuner.engine.train import train_in

if __name__ == "__main__":
    torch.set_num_threads(1)
    cases = json.loads(Path(sys.argv[1]).read_text())
    with open_world() as world:
        for name, values in cases.items():
            spec = RunSpec.model_validate(values)
            train_in(world, spec, name, (f"{name}.yaml", dump_yaml(spec)))
    asked = any(values["strategy"]["name"] == "deepspeed" for values in cases.values())
    assert asked or "deepspeed" not in sys.modules, "DeepSpeed is loaded, and no run has asked for it"
