// The kernels, compiled once for each instruction set. ALIGNJAX_ISA names it, ALIGNJAX_BYTES is the
// length of its vectors, ALIGNJAX_TILE and ALIGNJAX_ROWS what its registers hold.
#include "kernel.h"

#include "columns.h"
#include "descent.h"
#include "lanes.h"
#include "recursion.h"

namespace alignjax {
namespace {

// Calls `f` with widths that the compiler knows, if it has a version for them.
template <class F>
auto with_widths(const Shape& shape, F f) {
  bool square = true;
  for (std::int64_t i = 0; i < shape.depth; ++i) {
    square = square && shape.widths[i] == shape.widths[i + 1];
  }
  switch (square ? shape.widths[0] : 0) {
#define ALIGNJAX_WIDTH(K) \
  case K:                 \
    return f(Square<K>{});
    ALIGNJAX_WIDTH(2)
    ALIGNJAX_WIDTH(3)
    ALIGNJAX_WIDTH(4)
    ALIGNJAX_WIDTH(8)
    ALIGNJAX_WIDTH(9)
    ALIGNJAX_WIDTH(16)
#undef ALIGNJAX_WIDTH
    default:
      return f(Ragged{shape.widths});
  }
}

template <class Vec>
std::size_t lanes_scratch(const Shape& shape) {
  const Lanes<Vec, Ragged> general = {{shape.widths}};
  return Descent<Lanes<Vec, Ragged>>(shape, general, general, nullptr).bytes();
}

template <class Vec>
void advance_lanes(const Shape& shape, const Network<typename Vec::Number>* nets, int count,
                   std::int64_t steps, void* scratch) {
  with_widths(shape, [&](auto widths) {
    const Lanes<Vec, Ragged> general = {{shape.widths}};
    Descent<Lanes<Vec, decltype(widths)>>(shape, {widths}, general, scratch)
        .advance(nets, count, steps);
  });
}

template <class Vec>
std::size_t columns_scratch(const Shape& shape) {
  const Columns<Vec> products = {{shape.widths}, nullptr};
  return Descent<Columns<Vec>>(shape, products, products, nullptr).bytes();
}

template <class Vec>
void advance_columns(const Shape& shape, const Network<typename Vec::Number>& net,
                     std::int64_t steps, void* scratch) {
  const Columns<Vec> products = {{shape.widths}, nullptr};
  Descent<Columns<Vec>>(shape, products, products, scratch).advance(&net, 1, steps);
}

template <class Vec>
std::size_t modes_scratch(const ModesShape& shape) {
  return Recursion<Vec>(shape, nullptr).bytes();
}

template <class Vec>
void advance_modes(const ModesShape& shape, const Modes<typename Vec::Number>* runs, int count,
                   std::int64_t steps, bool shared, void* scratch) {
  Recursion<Vec>(shape, scratch).advance(runs, count, steps, shared);
}

template <class T>
constexpr Kernels<T> kernels() {
  using Vec = Vector<T, ALIGNJAX_BYTES>;
  return {Vec::lanes,           lanes_scratch<Vec>, advance_lanes<Vec>, columns_scratch<Vec>,
          advance_columns<Vec>, modes_scratch<Vec>, advance_modes<Vec>};
}

}  // namespace

#define ALIGNJAX_TEXT_(x) #x
#define ALIGNJAX_TEXT(x) ALIGNJAX_TEXT_(x)

extern const InstructionSet ALIGNJAX_ISA;
const InstructionSet ALIGNJAX_ISA = {ALIGNJAX_TEXT(ALIGNJAX_ISA), kernels<float>(),
                                     kernels<double>()};

}  // namespace alignjax
