"""ML engineering, appendix A.5's sweep of ExIt, with the best values of GRPO's but for the learning rate.

``rllib train file tuned_examples/mle_exit_sweep.py --best-of results/mle_sweep``. For another strategy, copy this
file and change its name.
"""

from mle_sweep import make_sweep

config, stop, tune_config = make_sweep("exit")
