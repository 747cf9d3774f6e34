"""``bfcl_exit`` at paper scale, 7B in full, on one node with 8 GPUs of 80 GB; see docs/howto/small_gpu.md."""

from bfcl_common import paper

config, stop = paper("exit")
# Each learner takes turns with an engine on their GPU; its share of weights and moments stays there.
config.learners(num_gpus_per_learner=0.5).env_runners(num_gpus_per_env_runner=0.5, num_cpus_per_env_runner=8)
config.generation(engine_args={"gpu_memory_utilization": 0.7}).colocate()
