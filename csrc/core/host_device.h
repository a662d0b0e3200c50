#pragma once

// Functions so marked are the body of a CUDA kernel and of its CPU loop alike: what the CPU tests
// prove is what the GPU runs.
#ifdef __CUDACC__
#define DSM_HOST_DEVICE __host__ __device__
#else
#define DSM_HOST_DEVICE
#endif
