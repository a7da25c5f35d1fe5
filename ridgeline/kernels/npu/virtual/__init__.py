"""A virtual NPU: torch_npu on a machine without Ascend hardware or software.

The real torch_npu, with its operator schemas, meta functions, autograd and allocator, is imported over stand-ins for
the CANN libraries it is linked to, and then works at three levels:

* ``fake``: `fake_npu` gives shapes, dtypes and autograd, with no numbers and no memory, for any rank of any world.
* emulated: `emulated_npu` computes real numbers, in host memory, on several gloo ranks if need be.
* single op: `npu_ops_on_cpu` lets a ``torch.ops.npu`` call take CPU tensors.

What it proves is that calls are right: names, arguments, layouts, shapes, gradients' paths. Of the numerics and the
speed of real kernels it says nothing.
"""
