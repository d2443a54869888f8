"""Training: a loop that drives a :class:`~fastgan.training.task.Task`, and what a run needs around it.

===================  ================================================================================
cyclegan, gan        the two trainers
task                 what a trainer is: networks, everything else with a state, one step
loop                 ``fit``: drives a task; logs, samples, evaluates, saves, resumes, stops cleanly
checkpoint           one safetensors file per checkpoint, written atomically, never unpickled
loader, batches      endless batches whose order and randomness are functions of seed and position
prefetch             batches on the device one step ahead
log, sheet, watch    stats.jsonl, TensorBoard, progress bar; sample sheets; the NaN watch
pool, schedule       CycleGAN's image pool; the learning-rate policies
ema, precision       averaged generator; autocast, loss scaling, memory format
graph                a step recorded once as a CUDA graph, then replayed
recompute, memory    activations that are recomputed in the backward pass; what it keeps otherwise
critic_step          WGAN-GP's critic update as a pure function that torch.compile takes whole
distributed          torchrun and DistributedDataParallel; rows of the joint batch
random               the states of all random generators
inference, sampling  using a trained CycleGAN; a trained GAN
===================  ================================================================================
"""
