#!/bin/bash
# Trains on the nodes of a SLURM job, or goes on from the newest checkpoint. Call it in the repository's folder. That and
# FOLDER, for the results, are on storage that all nodes share.
#
#   sbatch docs/cluster/slurm.sh tuned_examples/bfcl_exit_8x80gb.py FOLDER
#   sbatch --nodes=2 docs/cluster/slurm.sh tuned_examples/bfcl_exit_cluster.py FOLDER
#   scancel --batch --signal=TERM JOB   # saves a checkpoint and ends
#
#SBATCH --job-name=rllib-exit
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=96
#SBATCH --time=24:00:00
# SIGTERM for training alone, ten minutes before the time is up, saves a checkpoint; see docs/cluster.md.
#SBATCH --signal=B:TERM@600
#SBATCH --requeue
set -e
export PATH=$PWD/.venv/bin:$PATH
gpus=$SLURM_GPUS_ON_NODE others=$((SLURM_NNODES - 1))
# Ray's object store holds two versions of the weights.
node=(--num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="$gpus" --object-store-memory=40000000000)

# SLURM runs this script on the first node. That is the learners' where they and env runners have nodes of their own.
ray start --head --port=6379 "${node[@]}" --resources="{\"learner\": $gpus}"
if [ $others -gt 0 ]; then
    srun --nodes=$others --ntasks=$others --cpus-per-task="$SLURM_CPUS_PER_TASK" --exclude="$SLURMD_NODENAME" \
        ray start --address="$SLURMD_NODENAME:6379" --block "${node[@]}" --resources="{\"rollout\": $gpus}" &
fi
export RAY_ADDRESS=auto
# Training needs all nodes from the start.
timeout 600 python -c "
import ray, time
ray.init(logging_level='ERROR')
while sum(node['Alive'] for node in ray.nodes()) < $SLURM_NNODES:
    time.sleep(1)"
# In this script's place, so that SIGTERM reaches it. When it ends, SLURM ends Ray.
exec bash docs/cluster/train.sh "$@"
