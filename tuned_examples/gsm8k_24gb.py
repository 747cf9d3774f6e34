"""GSM8K on one GPU with 24 GB, by LoRA; see docs/howto/small_gpu.md."""

from gsm8k import final_answer

from rllib_exit import GRPOConfig

config = (
    GRPOConfig()
    .dataset("openai/gsm8k", data_config="main", prompt="question", test_fraction=0.05)
    .reward(final_answer)
    # Smaller: --set model_name=Qwen/Qwen2.5-0.5B-Instruct
    .language_model("Qwen/Qwen2.5-1.5B-Instruct", max_model_len=4096, gradient_checkpointing=True)
    .lora(r=32, alpha=32)
    # Adapters take a higher learning rate than weights do.
    .training(lr=2e-5, prompts_per_batch=64, kl_coeff=0.0, max_tokens_per_micro_batch=8192)
    .curriculum("exit", buffer_size=512, min_buffer_size=64, diversity_metric="edit_distance")
    .self_improvement(steps=4)
    .evaluation(evaluation_interval=10)
    # Learner and engine take turns on the GPU.
    .learners(num_learners=1, num_gpus_per_learner=0.5)
    .env_runners(num_env_runners=1, num_gpus_per_env_runner=0.5)
    .generation(max_response_tokens=1024, engine_args={"gpu_memory_utilization": 0.6})
    .colocate()
    .debugging(seed=0)
)
stop = {"training_iteration": 200}
