// What operands that come by bulk copies are made of, in shared memory.
#pragma once

namespace gralora {

/// A part is 64 x 64 elements of 16 bits, rows of 128 bytes, swizzled; an operand has one for every
/// 64 rows or columns.
inline constexpr int kPartBytes = 64 * 64 * 2;

/// Of a stage of the ring: the barriers that say that it is filled, and free again.
inline constexpr int kBarrierBytes = 16;

/// And the one that says that its left operand has been dropped.
inline constexpr int kDroppedBytes = 8;

}  // namespace gralora
