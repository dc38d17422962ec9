"The same script on several processes and machines: launch files, launcher, sharding, throughput"

import lazy_loader

_names = {
    "launch_files": ["accelerate_config", "check_config"],
    "launcher": ["host_commands", "launch", "slurm_job"],
    "sharded_save": ["sharded_memory", "save_whole", "check_whole"],
    "throughput": ["step_time"],
}
__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs=_names)
