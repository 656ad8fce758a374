// float16 as the kernels use it: rounded to nearest, ties to even.
#pragma once

#include <cstdint>
#include <cstring>

struct __half {
  uint16_t bits = 0;

  __half() = default;
  explicit __half(float value) {
    uint32_t word = word_of(value);
    const auto sign = static_cast<uint16_t>(word >> 16 & 0x8000);
    word &= 0x7fffffff;
    if (word > kInfinity) {
      bits = 0x7fff;
    } else if (word >= word_of(65520)) {
      bits = sign | 0x7c00;
    } else if (word < word_of(0x1p-14f)) {
      // Beside a half, a float's last place is float16's smallest distance.
      bits = sign | static_cast<uint16_t>(word_of(float_of(word) + 0.5f) - word_of(0.5f));
    } else {
      // What is carried out of the digits belongs to the exponent, whose field counts from 2^-14.
      const uint32_t rounded = word + 0xfff + (word >> 13 & 1) - (112u << 23);
      bits = sign | static_cast<uint16_t>(rounded >> 13);
    }
  }
  operator float() const {
    uint32_t word = static_cast<uint32_t>(bits & 0x7fff) << 13;
    // A float's exponent counts from 2^-126, also that of numbers without a leading digit.
    word = word < 31u << 23 ? word_of(float_of(word) * 0x1p112f) : word | kInfinity;
    return float_of(word | static_cast<uint32_t>(bits & 0x8000) << 16);
  }

 private:
  static constexpr uint32_t kInfinity = 0x7f800000;

  static uint32_t word_of(float value) {
    uint32_t word;
    std::memcpy(&word, &value, 4);
    return word;
  }
  static float float_of(uint32_t word) {
    float value;
    std::memcpy(&value, &word, 4);
    return value;
  }
};
