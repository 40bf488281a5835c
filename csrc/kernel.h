// What the dispatcher knows of a kernel. No code lives here: this header is seen by translation
// units that are compiled for different instruction sets.
#pragma once

#include <cstddef>
#include <cstdint>

namespace alignjax {

// The widths k_0, ..., k_d, and the index of the narrowest one (the output's wins ties, then the
// input's), from which the products of a gradient start.
struct Shape {
  const std::int64_t* widths;
  std::int64_t depth;
  std::int64_t vertex;
};

// Where the numbers of one network lie: row-major matrices, as XLA hands them over.
template <class T>
struct Network {
  const T* const* weights;  // W_1, ..., W_d
  T* const* results;        // where they go after the steps
  const T* rates;           // one a layer
  const T* input_moment;    // (k_0, k_0)
  const T* cross_moment;    // (k_d, k_0)
  const T* minimizer;       // (k_d, k_0)
  const T* slope;           // (k_d, k_0), the gradient at the minimizer
  const T* energy;          // the target's
  const T* floor;           // the risk at the minimizer
  std::int32_t* taken;
};

// How many runs of the recursion in singular values are taken together, of what depth and rank.
struct ModesShape {
  std::int64_t depth, rank, runs;
};

// Where the numbers of one run of it lie.
template <class T>
struct Modes {
  const T* const* values;  // s_1, ..., s_d, (r) each
  T* const* results;       // where they go after the steps
  const T* rates;          // one a layer
  const T* input;          // (r), the spectrum lambda
  const T* target;         // (r), lambda'
  const T* minimizer;      // (r)
  const T* floor;          // the risk at the minimizer
  std::int32_t* taken;
};

// Kernels for one precision. `scratch` is aligned to 64 bytes, zero at first, and the same for all
// calls of one thread that have the same shape.
template <class T>
struct Kernels {
  // Many networks at once, one in each lane of a vector; `count` is at most `lanes`.
  int lanes;
  std::size_t (*lanes_scratch)(const Shape&);
  void (*advance_lanes)(const Shape&, const Network<T>*, int count, std::int64_t steps, void*);
  // One network, vectors along its columns.
  std::size_t (*columns_scratch)(const Shape&);
  void (*advance_columns)(const Shape&, const Network<T>&, std::int64_t steps, void*);
  // Many runs of the recursion, lanes along their modes; `count` is at most `shape.runs`. `shared`
  // says that spectra, minimizer and floor are the same in all calls.
  std::size_t (*modes_scratch)(const ModesShape&);
  void (*advance_modes)(const ModesShape&, const Modes<T>*, int count, std::int64_t steps,
                        bool shared, void*);
};

struct InstructionSet {
  const char* name;
  Kernels<float> single;
  Kernels<double> twice;
};

}  // namespace alignjax
