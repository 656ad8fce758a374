// The element types that kernels read and write, without any tensor library's names for them.
#pragma once

namespace gralora {

enum class ElementType { kFloat64, kFloat32, kBFloat16, kFloat16 };

}  // namespace gralora
