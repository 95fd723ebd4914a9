"""GRACE's compressor on our kernels, with the work of its residual memory and allgather, without GRACE or a network.

With GRACE installed you need only the import:

    from terngrad_kernels.frontends.grace import TernGradCompressor
    communicator = Allgather(TernGradCompressor(packed=True), ResidualMemory(), world_size)
"""

import torch

from terngrad_kernels.frontends.grace import TernGradCompressor

WORKERS, STEPS, RATE = 4, 400, 0.05

torch.manual_seed(0)
torch.set_num_threads(1)  # the tensors are small
for packed in (False, True):
    compressors = [TernGradCompressor(packed=packed, seed=rank) for rank in range(WORKERS)]
    residuals = [torch.zeros(64, 8) for _ in range(WORKERS)]
    truth, weights = torch.randn(64, 8), torch.zeros(64, 8)
    nbytes = 0
    for _ in range(STEPS):
        gathered = []
        for compressor, residual in zip(compressors, residuals, strict=True):
            x = torch.randn(32, 64)
            gradient = x.T @ (x @ (weights - truth)) / len(x) + residual  # memory.compensate
            tensors, ctx = compressor.compress(gradient, "weights")
            residual.copy_(gradient - compressor.decompress(tensors, ctx))  # memory.update
            gathered.append(tensors)
            nbytes = sum(tensor.nbytes for tensor in tensors)
        total = compressors[0].aggregate([compressors[0].decompress(tensors, ctx) for tensors in gathered])
        weights -= RATE * total / WORKERS
    error = (weights - truth).abs().max().item()
    print(f"packed={packed}: {nbytes} bytes a message, {weights.nbytes} as float32; largest error {error:.3f}")
    assert error < 0.1
