// The products of a warpgroup (compute capability 9.0a), by the number of their columns.
#pragma once

#include "kernels/ptx_sm90.cuh"

namespace gralora::ptx {

// The sums of so many columns as operands of an assembly statement.
#define GRALORA_SUMS_OF_8(v) "+f"(sum[v][0]), "+f"(sum[v][1]), "+f"(sum[v][2]), "+f"(sum[v][3])
#define GRALORA_SUMS_OF_32(v) \
  GRALORA_SUMS_OF_8(v), GRALORA_SUMS_OF_8(v + 1), GRALORA_SUMS_OF_8(v + 2), GRALORA_SUMS_OF_8(v + 3)
#define GRALORA_SUMS_OF_128(v)                                                 \
  GRALORA_SUMS_OF_32(v), GRALORA_SUMS_OF_32(v + 4), GRALORA_SUMS_OF_32(v + 8), \
      GRALORA_SUMS_OF_32(v + 12)
#define GRALORA_MULTIPLY_32(type)                                                \
  asm volatile(                                                                  \
      "{\n\t.reg .pred adds;\n\tsetp.ne.b32 adds, %18, 0;\n\t"                   \
      "wgmma.mma_async.sync.aligned.m64n32k16.f32." type "." type                \
      " "                                                                        \
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, " \
      "%16, %17, adds, 1, 1, %19, %20;\n\t}"                                     \
      : GRALORA_SUMS_OF_32(0)                                                    \
      : "l"(left), "l"(right), "r"(adds), "n"(kLeftAlongRows), "n"(kRightAlongRows))
#define GRALORA_MULTIPLY_64(type)                                                         \
  asm volatile(                                                                           \
      "{\n\t.reg .pred adds;\n\tsetp.ne.b32 adds, %34, 0;\n\t"                            \
      "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type                         \
      " "                                                                                 \
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, " \
      "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "           \
      "%32, %33, adds, 1, 1, %35, %36;\n\t}"                                              \
      : GRALORA_SUMS_OF_32(0), GRALORA_SUMS_OF_32(4)                                      \
      : "l"(left), "l"(right), "r"(adds), "n"(kLeftAlongRows), "n"(kRightAlongRows))
#define GRALORA_MULTIPLY_128(type)                                                        \
  asm volatile(                                                                           \
      "{\n\t.reg .pred adds;\n\tsetp.ne.b32 adds, %66, 0;\n\t"                            \
      "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type                        \
      " "                                                                                 \
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, " \
      "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, "  \
      "%34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, "  \
      "%50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "           \
      "%64, %65, adds, 1, 1, %67, %68;\n\t}"                                              \
      : GRALORA_SUMS_OF_128(0)                                                            \
      : "l"(left), "l"(right), "r"(adds), "n"(kLeftAlongRows), "n"(kRightAlongRows))
#define GRALORA_MULTIPLY_192(type)                                                             \
  asm volatile(                                                                                \
      "{\n\t.reg .pred adds;\n\tsetp.ne.b32 adds, %98, 0;\n\t"                                 \
      "wgmma.mma_async.sync.aligned.m64n192k16.f32." type "." type                             \
      " "                                                                                      \
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, " \
      "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, "  \
      "%36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, "  \
      "%53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, %64, %65, %66, %67, %68, %69, "  \
      "%70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, %85, %86, "  \
      "%87, %88, %89, %90, %91, %92, %93, %94, %95}, "                                         \
      "%96, %97, adds, 1, 1, %99, %100;\n\t}"                                                  \
      : GRALORA_SUMS_OF_128(0), GRALORA_SUMS_OF_32(16), GRALORA_SUMS_OF_32(20)                 \
      : "l"(left), "l"(right), "r"(adds), "n"(kLeftAlongRows), "n"(kRightAlongRows))
#define GRALORA_MULTIPLY_256(type)                                                         \
  asm volatile(                                                                            \
      "{\n\t.reg .pred adds;\n\tsetp.ne.b32 adds, %130, 0;\n\t"                            \
      "wgmma.mma_async.sync.aligned.m64n256k16.f32." type "." type                         \
      " "                                                                                  \
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, "  \
      "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, "   \
      "%34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, "   \
      "%50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, %64, %65, "   \
      "%66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, "   \
      "%82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, "   \
      "%98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
      "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, "     \
      "%125, %126, %127}, "                                                                \
      "%128, %129, adds, 1, 1, %131, %132;\n\t}"                                           \
      : GRALORA_SUMS_OF_128(0), GRALORA_SUMS_OF_128(16)                                    \
      : "l"(left), "l"(right), "r"(adds), "n"(kLeftAlongRows), "n"(kRightAlongRows))

/// sum (+)= left right for 64 rows, kColumns columns and a depth of 16, by a whole warpgroup;
/// without `adds` what the sums hold is ignored. sum[v] has four numbers of columns v*8 to v*8 + 7,
/// placed on the threads as mma.sync's fragments; in use until wait_for_products().
template <class T, int kColumns, bool kLeftDepth, bool kRightDepth>
__device__ void multiply_add_parts(float (*sum)[4], uint64_t left, uint64_t right, int adds = 1) {
  constexpr int kLeftAlongRows = kLeftDepth ? 0 : 1, kRightAlongRows = kRightDepth ? 0 : 1;
  constexpr bool kIsBFloat16 = std::is_same_v<T, __nv_bfloat16>;
  static_assert(kColumns == 32 || kColumns == 64 || kColumns == 128 || kColumns == 192 ||
                kColumns == 256);
  if constexpr (kColumns == 32) {
    if constexpr (kIsBFloat16) {
      GRALORA_MULTIPLY_32("bf16");
    } else {
      GRALORA_MULTIPLY_32("f16");
    }
  } else if constexpr (kColumns == 64) {
    if constexpr (kIsBFloat16) {
      GRALORA_MULTIPLY_64("bf16");
    } else {
      GRALORA_MULTIPLY_64("f16");
    }
  } else if constexpr (kColumns == 128) {
    if constexpr (kIsBFloat16) {
      GRALORA_MULTIPLY_128("bf16");
    } else {
      GRALORA_MULTIPLY_128("f16");
    }
  } else if constexpr (kColumns == 192) {
    if constexpr (kIsBFloat16) {
      GRALORA_MULTIPLY_192("bf16");
    } else {
      GRALORA_MULTIPLY_192("f16");
    }
  } else {
    if constexpr (kIsBFloat16) {
      GRALORA_MULTIPLY_256("bf16");
    } else {
      GRALORA_MULTIPLY_256("f16");
    }
  }
}

/// The same for 16 columns, with rows that the warps hold, each its 16 of them as mma.sync's
/// fragment. The right operand's depth is along its rows (describe_narrow).
template <class T>
__device__ void multiply_add_narrow(float (&sum)[2][4], const uint32_t (&rows)[4], uint64_t right,
                                    int adds) {
#define GRALORA_MULTIPLY_HELD_16(type)                                                       \
  asm volatile(                                                                              \
      "{\n\t.reg .pred adds;\n\tsetp.ne.b32 adds, %13, 0;\n\t"                               \
      "wgmma.mma_async.sync.aligned.m64n16k16.f32." type "." type                            \
      " "                                                                                    \
      "{%0, %1, %2, %3, %4, %5, %6, %7}, {%8, %9, %10, %11}, %12, adds, 1, 1, 1;\n\t}"       \
      : "+f"(sum[0][0]), "+f"(sum[0][1]), "+f"(sum[0][2]), "+f"(sum[0][3]), "+f"(sum[1][0]), \
        "+f"(sum[1][1]), "+f"(sum[1][2]), "+f"(sum[1][3])                                    \
      : "r"(rows[0]), "r"(rows[1]), "r"(rows[2]), "r"(rows[3]), "l"(right), "r"(adds))
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    GRALORA_MULTIPLY_HELD_16("bf16");
  } else {
    GRALORA_MULTIPLY_HELD_16("f16");
  }
#undef GRALORA_MULTIPLY_HELD_16
}

#undef GRALORA_MULTIPLY_256
#undef GRALORA_MULTIPLY_192
#undef GRALORA_MULTIPLY_128
#undef GRALORA_MULTIPLY_64
#undef GRALORA_MULTIPLY_32
#undef GRALORA_SUMS_OF_128
#undef GRALORA_SUMS_OF_32
#undef GRALORA_SUMS_OF_8

}  // namespace gralora::ptx
