"""A CUDA device without memory for a PyTorch without CUDA: ``pytest -p tests.fake_cuda.plugin -m gpu tests/training``.

CUDA tensors are PyTorch's fake tensors, with shapes, types and a device and no values; the host's are real. What GPU
tests find there is what does not depend on values: tensors of two devices that meet, steps that wait for the device
where that is forbidden or a CUDA graph is recorded, names and arguments that do not exist. Values that reach the host
are made up, and every comparison holds. Kernels are not launched.
"""
