"""Run a script with FSDP2 on CPU: Accelerate 1.15 takes FSDP for GPUs alone; torch's runs on gloo too.

ACCELERATE_USE_CPU=true accelerate launch --config_file recipes/configs/fsdp2.yaml fsdp_on_cpu.py SCRIPT.py ...
"""

import runpy
import sys
from pathlib import Path

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

choose = AcceleratorState.__init__


def choose_on_cpu(self, *args, fsdp_plugin=None, **kwargs):
    choose(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
        PartialState._shared_state["distributed_type"] = self.distributed_type = DistributedType.FSDP
        self.fsdp_plugin = fsdp_plugin


AcceleratorState.__init__ = choose_on_cpu
sys.argv = sys.argv[1:]
sys.path.insert(0, str(Path(sys.argv[0]).parent))
runpy.run_path(sys.argv[0], run_name="__main__")
