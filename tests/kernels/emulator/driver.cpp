// The driver's calls of cuda.h, with the rules that the real ones check.
#include <cuda.h>
#include <cuda_runtime.h>

CUresult cuTensorMapEncodeTiled(CUtensorMap* map, CUtensorMapDataType, cuuint32_t rank, void* data,
                                const cuuint64_t* extents, const cuuint64_t* strides,
                                const cuuint32_t* box, const cuuint32_t* every,
                                CUtensorMapInterleave, CUtensorMapSwizzle swizzle,
                                CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
  constexpr uint64_t kMostExtent = uint64_t{1} << 32, kMostStride = uint64_t{1} << 40;
  bool is_right = rank == 3 && data != nullptr && reinterpret_cast<uintptr_t>(data) % 16 == 0;
  for (int axis = 0; axis < 3; ++axis) {
    is_right &= extents[axis] >= 1 && extents[axis] <= kMostExtent && box[axis] >= 1 &&
                box[axis] <= 256 && every[axis] == 1;
  }
  for (int axis = 0; axis < 2; ++axis) {
    is_right &= strides[axis] % 16 == 0 && strides[axis] > 0 && strides[axis] < kMostStride;
  }
  const cuuint32_t row_bytes = swizzle == CU_TENSOR_MAP_SWIZZLE_128B ? 128 : 32;
  is_right &= box[0] * 2 == row_bytes;
  if (!is_right) return CUDA_ERROR_INVALID_VALUE;
  map->row_bytes = row_bytes;
  map->data = static_cast<unsigned char*>(data);
  for (int axis = 0; axis < 3; ++axis) {
    map->extents[axis] = static_cast<int64_t>(extents[axis]);
    map->box[axis] = static_cast<int>(box[axis]);
  }
  for (int axis = 0; axis < 2; ++axis) map->strides[axis] = static_cast<int64_t>(strides[axis]);
  return CUDA_SUCCESS;
}

/// A chip before 9.0 has no tensor maps.
cudaError_t cudaGetDriverEntryPointByVersion(const char*, void** entry, unsigned,
                                             unsigned long long,
                                             cudaDriverEntryPointQueryResult* found) {
  const bool has = emulated_capability() >= 90;
  *entry = has ? reinterpret_cast<void*>(&cuTensorMapEncodeTiled) : nullptr;
  *found = has ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  return cudaSuccess;
}
