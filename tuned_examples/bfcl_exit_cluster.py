"""``bfcl_exit`` on two nodes of 8 GPUs: learners on the one, env runners on the other; see docs/cluster.md."""

from bfcl_common import paper

config, stop = paper("exit")
# Resources that the nodes are started with keep each kind on its own.
config.learners(custom_resources_per_learner={"learner": 1})
config.env_runners(custom_resources_per_env_runner={"rollout": 1}, num_cpus_per_env_runner=8)
config.generation(weight_transfer="nccl")
