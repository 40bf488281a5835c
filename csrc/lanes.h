// Products of many small matrices at once: a cell holds the same entry of as many networks as a
// vector has lanes, so that every operation is one on whole vectors, and transposing is free.
#pragma once

#include "chain.h"
#include "vectors.h"

namespace alignjax {
namespace {

// Entries of a matrix at `at[i * rows + j * cols]`.
template <class Cell, class R, class C>
struct Strided {
  const Cell* at;
  R rows;
  C cols;
};

template <class Vec, class Widths>
struct Lanes {
  using V = typename Vec::type;
  using Mask = typename Vec::mask;
  using Number = typename Vec::Number;
  using Cell = V;
  static constexpr int networks = Vec::lanes;
  static constexpr bool square = Widths::square;
  static constexpr long width = Widths::width;
  static constexpr bool small = 0 < width && width <= 4;  // see small.h
  // Tiles as large as registers hold: 16 accumulators and 5 operands of 32, or 9 and 4 of 16.
  static constexpr int kRows = ALIGNJAX_TILE;

  // The same operations on the same memory, in less code: for what runs rarely.
  using General = Lanes<Vec, Ragged>;

  Widths k;

  static ALIGNJAX_INLINE V get(const Cell* at) { return *at; }
  static ALIGNJAX_INLINE void put(Cell* at, V x) { *at = x; }
  static ALIGNJAX_INLINE V splat(Number x) { return Vec::splat(x); }
  static ALIGNJAX_INLINE V total(V x) { return x; }
  static ALIGNJAX_INLINE void set(V& v, int lane, Number x) { v[lane] = x; }
  static std::uint64_t bits(Mask m) { return Vec::bits(m); }

  std::size_t cells(int rows, int cols) const { return k(rows) * k(cols); }
  void place(Arena&, int) {}

  template <class F>
  ALIGNJAX_INLINE void each(Matrix<Cell> m, F f) const {
    const long n = k(m.rows) * k(m.cols);
    for (long at = 0; at < n; ++at) f(at);
  }

  // In the order in which vectors along the columns of a matrix are summed, so that networks freeze
  // at the same risk however they lie.
  template <class F>
  ALIGNJAX_INLINE V sum(Matrix<Cell> m, F f) const {
    V parts[networks] = {};
    const long rows = k(m.rows), cols = k(m.cols);
    for (long i = 0, at = 0; i < rows; ++i) {
      for (long j = 0; j < cols; ++j, ++at) f(at, parts[j % networks]);
    }
    V out{};
    for (int part = 0; part < networks; ++part) out += parts[part];
    return out;
  }

  void pack(Cell* to, int rows, int cols, int lane, const Number* from) const {
    const long n = k(rows) * k(cols);
    Number* at = reinterpret_cast<Number*>(to) + lane;
    for (long i = 0; i < n; ++i) at[i * networks] = from[i];
  }

  void unpack(const Cell* from, int rows, int cols, int lane, Number* to) const {
    const long n = k(rows) * k(cols);
    const Number* at = reinterpret_cast<const Number*>(from) + lane;
    for (long i = 0; i < n; ++i) to[i] = at[i * networks];
  }

  void clear(Cell* at, int rows, int cols, int lane) const {
    const long n = k(rows) * k(cols);
    for (long i = 0; i < n; ++i) at[i][lane] = 0;
  }

  template <class A, class B, class Epilogue>
  ALIGNJAX_INLINE void multiply(A a, B b, Epilogue epilogue) const {
    tiles(k(row_index(a)), k(col_index(b)), k(col_index(a)), strided(a), strided(b), epilogue);
  }

 private:
  static ALIGNJAX_INLINE int row_index(Matrix<Cell> m) { return m.rows; }
  static ALIGNJAX_INLINE int col_index(Matrix<Cell> m) { return m.cols; }
  static ALIGNJAX_INLINE int row_index(Transposed<Cell> m) { return m.of.cols; }
  static ALIGNJAX_INLINE int col_index(Transposed<Cell> m) { return m.of.rows; }

  ALIGNJAX_INLINE auto strided(Matrix<Cell> m) const {
    const auto across = k(m.cols);
    return Strided<Cell, decltype(k(0)), Constant<1>>{m.at, across, {}};
  }
  ALIGNJAX_INLINE auto strided(Transposed<Cell> m) const {
    const auto across = k(m.of.cols);
    return Strided<Cell, Constant<1>, decltype(k(0))>{m.of.at, {}, across};
  }

  template <int M, int N, class K, class A, class B, class Epilogue>
  static ALIGNJAX_INLINE void tile(K inner, A a, B b, long at, long across, Epilogue& epilogue) {
    // From zero, not from the first product: a sum of two products could be contracted in two
    // ways, and then known and unknown widths would differ in the last bit.
    V sum[M][N] = {};
    const Cell *left = a.at, *right = b.at;
    for (long p = 0; p < inner; ++p) {
      ALIGNJAX_UNROLL for (int i = 0; i < M; ++i) {
        ALIGNJAX_UNROLL for (int j = 0; j < N; ++j) {
          sum[i][j] += left[i * a.rows] * right[j * b.cols];
        }
      }
      left += a.cols;
      right += b.rows;
    }
    ALIGNJAX_UNROLL for (int i = 0; i < M; ++i) {
      ALIGNJAX_UNROLL for (int j = 0; j < N; ++j) epilogue(at + i * across + j, sum[i][j], i);
    }
  }

  static constexpr long pieces(long n) { return (n + kRows - 1) / kRows; }

  // Widths that the compiler knows and that tiles of one size fill.
  template <long M, long N, long K, class A, class B, class Epilogue>
  static ALIGNJAX_INLINE void tiles(Constant<M>, Constant<N>, Constant<K> inner, A a, B b,
                                    Epilogue epilogue) {
    constexpr int m = M / pieces(M), n = N / pieces(N);
    static_assert(M % m == 0 && N % n == 0);
    for (long i = 0; i < M; i += m) {
      for (long j = 0; j < N; j += n) {
        tile<m, n>(inner, A{a.at + i * a.rows, a.rows, a.cols},
                   B{b.at + j * b.cols, b.rows, b.cols}, i * N + j, N, epilogue);
      }
    }
  }

  template <class A, class B, class Epilogue>
  static void tiles(long m, long n, long inner, A a, B b, Epilogue epilogue) {
    const long down = pieces(m), along = pieces(n);
    for (long r = 0, i = 0; r < down; ++r) {
      const int height = static_cast<int>(m / down + (r < m % down));
      for (long c = 0, j = 0; c < along; ++c) {
        const int width = static_cast<int>(n / along + (c < n % along));
        sized<kRows, kRows>(height, width, inner, A{a.at + i * a.rows, a.rows, a.cols},
                            B{b.at + j * b.cols, b.rows, b.cols}, i * n + j, n, epilogue);
        j += width;
      }
      i += height;
    }
  }

  template <int M, int N, class A, class B, class Epilogue>
  static ALIGNJAX_INLINE void sized(int height, int width, long inner, A a, B b, long at,
                                    long across, Epilogue& epilogue) {
    if (M > 1 && height < M) {
      sized<(M > 1 ? M - 1 : 1), N>(height, width, inner, a, b, at, across, epilogue);
    } else if (N > 1 && width < N) {
      sized<M, (N > 1 ? N - 1 : 1)>(height, width, inner, a, b, at, across, epilogue);
    } else {
      tile<M, N>(inner, a, b, at, across, epilogue);
    }
  }
};

}  // namespace
}  // namespace alignjax
