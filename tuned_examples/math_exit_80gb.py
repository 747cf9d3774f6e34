"""``math_exit`` at paper scale, 3B in full, on one GPU with 80 GB; see docs/howto/small_gpu.md."""

from math_common import paper

config, stop = paper("exit")
# Without a licence for Llama: --set model_name=Qwen/Qwen2.5-3B-Instruct
config.training(max_tokens_per_micro_batch=8192)
# Learner and engine take turns on the GPU; the learner's weights and moments stay there.
config.learners(num_gpus_per_learner=0.5).env_runners(num_gpus_per_env_runner=0.5)
config.generation(engine_args={"gpu_memory_utilization": 0.4}).colocate()
# The GPU has no room for an embedder.
config.curriculum(num_embedders=4)
