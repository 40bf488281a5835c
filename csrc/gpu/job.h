// What a kernel for GPUs is to do, as it is handed over to the card: numbers and addresses only.
#pragma once

#include <cstddef>
#include <cstdint>

namespace alignjax {

constexpr int kMostAxes = 8;     // batch axes that do not lie side by side in all operands
constexpr int kMostLayers = 48;  // of one network

// Where an operand's part for a network lies.
struct Operand {
  const char* data;
  std::int64_t strides[kMostAxes];  // bytes along each batch axis, 0 where it is shared
};

struct Job {
  // Moments and numbers are row-major, as XLA hands them over.
  Operand rates, input_moment, cross_moment, minimizer, slope, energy, floor;
  Operand layers;  // W_1, ..., W_d one after the other
  char* moved;     // the same for all networks, side by side
  std::int32_t* taken;
  const std::int32_t* steps;

  std::int64_t networks;
  std::int64_t sizes[kMostAxes];  // of the batch axes
  std::int32_t axes;
  std::int32_t depth, vertex;  // as in kernel.h
  std::int64_t widths[kMostLayers + 1];
  std::int64_t entries;  // of all layers of a network
  std::int32_t item;     // bytes of a number: 4 or 8
  bool lanes;            // a network a thread, or else a block of threads

  // Of a block of threads that shares a network.
  std::int32_t threads, side;  // how many, and the side of the tiles of a product that each takes
  std::size_t room, on_chip;   // the most bytes of shared memory, and those used
  char* scratch;               // what finds no room there
  std::size_t scratch_bytes;   // of each block
  std::int64_t blocks;
};

// What the card at hand gives, and what it does. Texts are errors; null means that all is well.
const char* find_room(Job& job);    // sets `room`
const char* find_blocks(Job& job);  // sets `blocks`, knowing `on_chip`
const char* launch(const Job& job, void* stream);

}  // namespace alignjax
