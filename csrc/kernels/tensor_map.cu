#include "kernels/tensor_map.h"

namespace gralora {
namespace {

using Encode = decltype(&cuTensorMapEncodeTiled);

/// Through the runtime, so that nothing is linked against the driver's library.
Encode find_encoder() {
  void* entry = nullptr;
  cudaDriverEntryPointQueryResult found{};
#if CUDART_VERSION >= 12050
  constexpr unsigned kVersion = 12000;  // of CUDA, whose driver brought tensor maps
  const cudaError_t status = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry,
                                                              kVersion, cudaEnableDefault, &found);
#else
  const cudaError_t status =
      cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &entry, cudaEnableDefault, &found);
#endif
  if (status != cudaSuccess) (void)cudaGetLastError();
  return status == cudaSuccess && found == cudaDriverEntryPointSuccess
             ? reinterpret_cast<Encode>(entry)
             : nullptr;
}

Encode encoder() {
  static const Encode encode = find_encoder();
  return encode;
}

constexpr int64_t kElementBytes = 2;

/// An axis with one place needs a stride all the same.
cuuint64_t stride_bytes(int64_t extent, int64_t stride) {
  constexpr int64_t kAnyStride = 8;
  return static_cast<cuuint64_t>((extent > 1 ? stride : kAnyStride) * kElementBytes);
}

}  // namespace

bool has_tensor_maps() { return encoder() != nullptr; }

cudaError_t make_tensor_map(CUtensorMap& map, const BoxedTensor& tensor) {
  const Encode encode = encoder();
  if (encode == nullptr) return cudaErrorNotSupported;
  const cuuint64_t extents[3] = {static_cast<cuuint64_t>(tensor.inner),
                                 static_cast<cuuint64_t>(tensor.middle),
                                 static_cast<cuuint64_t>(tensor.outer)};
  const cuuint64_t strides[2] = {stride_bytes(tensor.middle, tensor.middle_stride),
                                 stride_bytes(tensor.outer, tensor.outer_stride)};
  const cuuint32_t box[3] = {static_cast<cuuint32_t>(tensor.box_inner),
                             static_cast<cuuint32_t>(tensor.box_middle), 1};
  const cuuint32_t every[3] = {1, 1, 1};
  const auto encode_map = [&] {
    return encode(
        &map,
        tensor.type == ElementType::kBFloat16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                              : CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
        3, const_cast<void*>(tensor.data), extents, strides, box, every,
        CU_TENSOR_MAP_INTERLEAVE_NONE,
        tensor.box_inner == kBoxInner ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_32B,
        CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  };
  CUresult result = encode_map();
  if (result != CUDA_SUCCESS) {
    // A thread that has not launched anything yet, such as autograd's, may have no context.
    int device = 0;
    cudaError_t status = cudaGetDevice(&device);
    if (status == cudaSuccess) status = cudaSetDevice(device);
    if (status != cudaSuccess) return status;
    result = encode_map();
  }
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

}  // namespace gralora
