// float16 as the kernels use it: rounded to nearest, ties to even.
#pragma once

#include <cmath>
#include <cstdint>

struct __half {
  uint16_t bits = 0;

  __half() = default;
  explicit __half(float value) {
    const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
    const double size = std::abs(static_cast<double>(value));
    if (std::isnan(value)) {
      bits = 0x7fff;
    } else if (size == 0) {
      bits = sign;
    } else if (size >= 65520) {
      bits = sign | 0x7c00;
    } else {
      // Whole multiples of the distance of numbers of this size; nearbyint() rounds ties to even.
      int exponent = 0;
      std::frexp(size, &exponent);
      exponent = exponent < -13 ? -13 : exponent;
      const auto multiples = static_cast<uint32_t>(std::nearbyint(std::ldexp(size, 11 - exponent)));
      // 1024 multiples are a whole power of two, which is what the exponent's field counts.
      bits =
          static_cast<uint16_t>(sign | (multiples + (static_cast<uint32_t>(exponent + 13) << 10)));
    }
  }
  operator float() const {
    const int exponent = bits >> 10 & 31, digits = bits & 1023;
    const double size = exponent == 31  ? (digits == 0 ? INFINITY : NAN)
                        : exponent == 0 ? std::ldexp(digits, -24)
                                        : std::ldexp(digits + 1024, exponent - 25);
    return static_cast<float>((bits & 0x8000) != 0 ? -size : size);
  }
};
