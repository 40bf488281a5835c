// One step of gradient descent on a chain of layers, written once for every way of computing
// products. `Products` says how matrices lie in memory and multiplies them.
//
// With b the narrowest vertex, left_i = W_b...W_{i+1} and right_i = W_i...W_{b+1}, a signal that
// starts as the gradient in the end-to-end matrix is carried through the layers:
//   dW_i = left_i^T signal,  signal <- signal W_i^T    for i = 1, ..., b,
//   dW_i = signal right_{i-1}^T,  signal <- W_i^T signal    for i = d, ..., b + 1.
#pragma once

#include "basics.h"

namespace alignjax {
namespace {

template <class Cell>
struct Matrix {
  Cell* at;
  int rows, cols;  // indices of widths
};

template <class Cell>
struct Transposed {
  Matrix<Cell> of;
};

template <class Cell>
ALIGNJAX_INLINE Transposed<Cell> transposed(Matrix<Cell> m) {
  return {m};
}

// What becomes of each entry of a product: (offset in the result, entry, row within a tile).
template <class P>
struct Store {
  typename P::Cell* out;
  ALIGNJAX_INLINE void operator()(long at, typename P::V x, int) const { P::put(out + at, x); }
};

template <class P>
struct StoreAndSquare {
  typename P::Cell* out;
  typename P::V (&squares)[P::kRows];
  ALIGNJAX_INLINE void operator()(long at, typename P::V x, int row) const {
    P::put(out + at, x);
    squares[row] += x * x;
  }
};

template <class P>
struct Subtract {
  typename P::Cell* out;
  const typename P::Cell* from;
  ALIGNJAX_INLINE void operator()(long at, typename P::V x, int) const {
    P::put(out + at, x - P::get(from + at));
  }
};

template <class P>
struct Descend {
  typename P::Cell* weights;
  typename P::V rate;
  ALIGNJAX_INLINE void operator()(long at, typename P::V x, int) const {
    P::put(weights + at, P::get(weights + at) - rate * x);
  }
};

template <class P>
struct DescendAndLook {
  typename P::Cell* weights;
  typename P::V rate;
  typename P::V& finite;  // stays zero as long as every gradient is finite
  ALIGNJAX_INLINE void operator()(long at, typename P::V x, int) const {
    finite += x * typename P::V{};
    P::put(weights + at, P::get(weights + at) - rate * x);
  }
};

template <class P>
struct Chain {
  using V = typename P::V;
  using Mask = typename P::Mask;
  using Cell = typename P::Cell;

  P products;
  int depth, vertex;
  Cell** weights;  // weights[i] is W_i, i = 1, ..., d; side by side in one block
  std::size_t layers_bytes;
  Cell** left;     // left[i] = W_b...W_{i+1}, i < b
  Cell** right;    // right[i] = W_i...W_{b+1}, i > b
  Cell* inner_signal[2];
  Cell* outer_signal[2];
  Cell *moved, *square, *gram, *pulled, *subtrahend;
  Cell *input_moment, *cross_moment, *minimizer, *slope;
  V* rates;  // rates[i] of layer i
  V energy, floor;
  V bound;    // a state whose squared norm is below it has an acceptable risk
  V largest;  // the largest acceptable risk

  ALIGNJAX_INLINE Matrix<Cell> w(int i) const { return {weights[i], i, i - 1}; }
  ALIGNJAX_INLINE Matrix<Cell> left_of(int i) const {
    return {i == vertex - 1 ? weights[vertex] : left[i], vertex, i};
  }
  ALIGNJAX_INLINE Matrix<Cell> right_of(int i) const {
    return {i == vertex + 1 ? weights[vertex + 1] : right[i], i, vertex};
  }

  ALIGNJAX_ANYWHERE void place(Arena& arena) {
    const int d = depth, b = vertex;
    weights = arena.take<Cell*>(d + 1);
    left = arena.take<Cell*>(d + 1);
    right = arena.take<Cell*>(d + 1);
    rates = arena.take<V>(d + 1);
    const bool counting = arena.base == nullptr;
    auto matrix = [&](int rows, int cols) { return arena.take<Cell>(products.cells(rows, cols)); };
    const std::size_t before = arena.used;
    for (int i = 1; i <= d; ++i) {
      Cell* at = matrix(i, i - 1);
      if (!counting) weights[i] = at;
    }
    layers_bytes = arena.used - before;
    for (int i = 0; i < b - 1; ++i) {
      Cell* at = matrix(b, i);
      if (!counting) left[i] = at;
    }
    for (int i = b + 2; i <= d; ++i) {
      Cell* at = matrix(i, b);
      if (!counting) right[i] = at;
    }
    std::size_t inner = 0, outer = 0;
    for (int i = 0; i < b; ++i) inner = larger(inner, products.cells(b, i));
    for (int i = b + 1; i <= d; ++i) outer = larger(outer, products.cells(i, b));
    for (auto& signal : inner_signal) signal = arena.take<Cell>(inner);
    for (auto& signal : outer_signal) signal = arena.take<Cell>(outer);
    input_moment = matrix(0, 0);
    cross_moment = matrix(d, 0);
    minimizer = matrix(d, 0);
    slope = matrix(d, 0);
    if (0 < b && b < d) {
      moved = matrix(b, 0);
      pulled = matrix(b, 0);
      square = matrix(b, b);
      gram = matrix(b, b);
      subtrahend = matrix(d, b);
    }
    products.place(arena, d + 1);
  }

  // Moves W by one step, and says of the W before it whether its risk is acceptable: with kExact
  // exactly, and whether its gradient is finite too; without, "yes" is certain as long as the
  // moved W is finite, "no" is not.
  template <bool kExact>
  ALIGNJAX_INLINE Mask step() {
    V finite{};
    Mask fine;
    if constexpr (P::square) {
      fine = straight<kExact, true>(finite);
    } else if (vertex == depth) {
      fine = straight<kExact, true>(finite);
    } else if (vertex == 0) {
      fine = straight<kExact, false>(finite);
    } else {
      fine = bottleneck<kExact>(finite);
    }
    return kExact ? fine & (P::total(finite) == V{}) : fine;
  }

 private:
  static ALIGNJAX_INLINE std::size_t larger(std::size_t a, std::size_t b) { return a > b ? a : b; }

  // The narrowest width is that of the outputs, or that of the inputs.
  template <bool kExact, bool kInward>
  ALIGNJAX_INLINE Mask straight(V& finite) {
    const int d = depth, b = vertex;
    V squares[P::kRows] = {};
    if (d > 1) {
      if constexpr (kInward) {
        fill_left(1);
        const Matrix<Cell> last = {left[0], b, 0};
        products.multiply(left_of(1), w(1), StoreAndSquare<P>{last.at, squares});
      } else {
        fill_right(d - 1);
        const Matrix<Cell> last = {right[d], d, b};
        products.multiply(w(d), right_of(d - 1), StoreAndSquare<P>{last.at, squares});
      }
    }
    const Matrix<Cell> product = {d == 1 ? weights[1] : kInward ? left[0] : right[d], d, 0};
    if (d == 1) {
      products.each(product, [&](long at) {
        const V x = P::get(product.at + at);
        squares[0] += x * x;
      });
    }
    Cell* signal = kInward ? inner_signal[0] : outer_signal[0];
    const Matrix<Cell> moment = {input_moment, 0, 0};
    products.multiply(product, moment, Subtract<P>{signal, cross_moment});
    Mask fine;
    if constexpr (kExact) {
      const V risk = products.sum(product, [&](long at, V& part) {
        part += (P::get(signal + at) + P::get(slope + at)) *
                (P::get(product.at + at) - P::get(minimizer + at));
      });
      fine = acceptable(floor + P::splat(0.5) * risk);
    } else {
      V sum = squares[0];
      for (int i = 1; i < P::kRows; ++i) sum += squares[i];
      fine = P::total(sum) <= bound;
    }
    if constexpr (kInward) {
      into_inner<kExact>(finite);
    } else {
      into_outer<kExact>(finite);
    }
    return fine;
  }

  template <bool kExact>
  ALIGNJAX_INLINE Mask bottleneck(V& finite) {
    const int d = depth, b = vertex;
    fill_left(0);
    fill_right(d);
    const Matrix<Cell> inner = left_of(0), outer = right_of(d);
    const Matrix<Cell> m = {moved, b, 0}, p = {pulled, b, 0}, s = {square, b, b}, g = {gram, b, b};
    const Matrix<Cell> moment = {input_moment, 0, 0}, cross = {cross_moment, d, 0};
    products.multiply(inner, moment, Store<P>{m.at});
    products.multiply(m, transposed(inner), Store<P>{s.at});
    products.multiply(transposed(outer), outer, Store<P>{g.at});
    products.multiply(transposed(outer), cross, Store<P>{p.at});
    const V quadratic = products.sum(
        s, [&](long at, V& part) { part += P::get(g.at + at) * P::get(s.at + at); });
    const V linear = products.sum(
        p, [&](long at, V& part) { part += P::get(p.at + at) * P::get(inner.at + at); });
    const V risk = P::splat(0.5) * (energy + quadratic) - linear;
    const Mask fine = acceptable(risk);
    products.multiply(cross, transposed(inner), Store<P>{subtrahend});
    products.multiply(outer, s, Subtract<P>{outer_signal[0], subtrahend});
    products.multiply(g, m, Subtract<P>{inner_signal[0], p.at});
    into_inner<kExact>(finite);
    into_outer<kExact>(finite);
    return fine;
  }

  ALIGNJAX_INLINE Mask acceptable(V risk) const {
    return (risk <= largest) & (risk * V{} == V{});
  }

  // left_i for i = b - 2, ..., last; left_{b-1} is W_b itself.
  ALIGNJAX_INLINE void fill_left(int last) {
    for (int i = vertex - 2; i >= last; --i) {
      products.multiply(left_of(i + 1), w(i + 1), Store<P>{left[i]});
    }
  }

  ALIGNJAX_INLINE void fill_right(int last) {
    for (int i = vertex + 2; i <= last; ++i) {
      products.multiply(w(i), right_of(i - 1), Store<P>{right[i]});
    }
  }

  template <bool kExact, class A, class B>
  ALIGNJAX_INLINE void descend(int i, A a, B b, V& finite) {
    if constexpr (kExact) {
      products.multiply(a, b, DescendAndLook<P>{weights[i], rates[i], finite});
    } else {
      products.multiply(a, b, Descend<P>{weights[i], rates[i]});
    }
  }

  template <bool kExact>
  ALIGNJAX_INLINE void descend_along(int i, const Cell* signal, V& finite) {
    products.each(w(i), [&](long at) {
      const V x = P::get(signal + at);
      if (kExact) finite += x * V{};
      P::put(weights[i] + at, P::get(weights[i] + at) - rates[i] * x);
    });
  }

  template <bool kExact>
  ALIGNJAX_INLINE void into_inner(V& finite) {
    const int b = vertex;
    Cell *signal = inner_signal[0], *next = inner_signal[1];
    for (int i = 1; i < b; ++i) {
      const Matrix<Cell> now = {signal, b, i - 1};
      products.multiply(now, transposed(w(i)), Store<P>{next});
      descend<kExact>(i, transposed(left_of(i)), now, finite);
      Cell* spare = signal;
      signal = next;
      next = spare;
    }
    descend_along<kExact>(b, signal, finite);
  }

  template <bool kExact>
  ALIGNJAX_INLINE void into_outer(V& finite) {
    const int b = vertex;
    Cell *signal = outer_signal[0], *next = outer_signal[1];
    for (int i = depth; i > b + 1; --i) {
      const Matrix<Cell> now = {signal, i, b};
      products.multiply(transposed(w(i)), now, Store<P>{next});
      descend<kExact>(i, now, transposed(right_of(i - 1)), finite);
      Cell* spare = signal;
      signal = next;
      next = spare;
    }
    descend_along<kExact>(b + 1, signal, finite);
  }
};

}  // namespace
}  // namespace alignjax
