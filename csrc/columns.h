// Products of one network's wide matrices: vectors run along the rows of a matrix, whose length is
// padded with zeros to whole vectors.
#pragma once

#include "chain.h"
#include "vectors.h"

namespace alignjax {
namespace {

template <class Vec>
struct Columns {
  using V = typename Vec::type;
  using Mask = typename Vec::mask;
  using Number = typename Vec::Number;
  using Cell = Number;
  static constexpr int networks = 1;
  static constexpr bool square = false;
  static constexpr bool small = false;
  using General = Columns;
  static constexpr int kRows = 8;

  Ragged k;
  Cell* flipped;  // room for one transposed matrix

  static ALIGNJAX_INLINE V get(const Cell* at) { return *reinterpret_cast<const V*>(at); }
  static ALIGNJAX_INLINE void put(Cell* at, V x) { *reinterpret_cast<V*>(at) = x; }
  static ALIGNJAX_INLINE V splat(Number x) { return Vec::splat(x); }
  static ALIGNJAX_INLINE V total(V x) { return Vec::splat(Vec::sum(x)); }
  static ALIGNJAX_INLINE void set(V& v, int, Number x) { v = Vec::splat(x); }
  static std::uint64_t bits(Mask m) { return m[0] != 0; }

  // The distance of rows: whole vectors, and an odd number of cache lines, for rows that lie a
  // power of two apart evict each other.
  ALIGNJAX_INLINE long across(int cols) const {
    constexpr long line = 64 / static_cast<long>(sizeof(Cell));
    const long lines = (k(cols) + line - 1) / line;
    return (lines > 2 ? lines | 1 : lines) * line;
  }
  std::size_t cells(int rows, int cols) const { return k(rows) * across(cols); }

  void place(Arena& arena, int widths) {
    std::size_t most = 0;
    for (int i = 0; i < widths; ++i) {
      for (int j = 0; j < widths; ++j) most = cells(i, j) > most ? cells(i, j) : most;
    }
    flipped = arena.take<Cell>(most);
  }

  // Columns in whole vectors; what lies beyond them is never read.
  ALIGNJAX_INLINE long whole(int cols) const {
    return (k(cols) + Vec::lanes - 1) / Vec::lanes * Vec::lanes;
  }

  template <class F>
  ALIGNJAX_INLINE void each(Matrix<Cell> m, F f) const {
    const long rows = k(m.rows), step = across(m.cols), width = whole(m.cols);
    for (long i = 0; i < rows; ++i) {
      for (long j = 0; j < width; j += Vec::lanes) f(i * step + j);
    }
  }

  // `f(at, part)` adds what entry `at` contributes.
  template <class F>
  ALIGNJAX_INLINE V sum(Matrix<Cell> m, F f) const {
    V part{};
    each(m, [&](long at) { f(at, part); });
    return total(part);
  }

  void pack(Cell* to, int rows, int cols, int, const Number* from) const {
    const long width = k(cols), step = across(cols);
    for (long i = 0; i < k(rows); ++i) {
      for (long j = 0; j < width; ++j) to[i * step + j] = from[i * width + j];
      for (long j = width; j < step; ++j) to[i * step + j] = 0;
    }
  }

  void unpack(const Cell* from, int rows, int cols, int, Number* to) const {
    const long width = k(cols), step = across(cols);
    for (long i = 0; i < k(rows); ++i) {
      for (long j = 0; j < width; ++j) to[i * width + j] = from[i * step + j];
    }
  }

  // There is one network only: once it is frozen, nobody steps any more.
  void clear(Cell*, int, int, int) const {}

  template <class Epilogue>
  void multiply(Matrix<Cell> a, Matrix<Cell> b, Epilogue epilogue) const {
    blocks(k(a.rows), whole(b.cols), k(a.cols), a.at, across(a.cols), 1, b.at, across(b.cols),
           epilogue);
  }

  template <class Epilogue>
  void multiply(Transposed<Cell> a, Matrix<Cell> b, Epilogue epilogue) const {
    blocks(k(a.of.cols), whole(b.cols), k(a.of.rows), a.of.at, 1, across(a.of.cols), b.at,
           across(b.cols), epilogue);
  }

  template <class Epilogue>
  void multiply(Matrix<Cell> a, Transposed<Cell> b, Epilogue epilogue) const {
    flip(b.of);
    multiply(a, Matrix<Cell>{flipped, b.of.cols, b.of.rows}, epilogue);
  }

 private:
  void flip(Matrix<Cell> m) const {
    const long rows = k(m.rows), cols = k(m.cols), from = across(m.cols), to = across(m.rows);
    constexpr int side = 16 / static_cast<int>(sizeof(Cell));
    using Small = Vector<Cell, 16>;
    using S = typename Small::type;
    const long width = whole(m.rows);
    const long whole_rows = rows / side * side, whole_cols = cols / side * side;
    for (long i = 0; i < whole_rows; i += side) {
      for (long j = 0; j < whole_cols; j += side) {
        S block[side];
        ALIGNJAX_UNROLL for (int r = 0; r < side; ++r) {
          block[r] = *reinterpret_cast<const S*>(m.at + (i + r) * from + j);
        }
        flip_block(block);
        ALIGNJAX_UNROLL for (int r = 0; r < side; ++r) {
          *reinterpret_cast<S*>(flipped + (j + r) * to + i) = block[r];
        }
      }
    }
    for (long j = 0; j < cols; ++j) {
      for (long i = j < whole_cols ? whole_rows : 0; i < rows; ++i) {
        flipped[j * to + i] = m.at[i * from + j];
      }
      for (long i = rows; i < width; ++i) flipped[j * to + i] = 0;
    }
  }

  template <class S>
  static ALIGNJAX_INLINE void flip_block(S (&x)[4]) {
    const S a = shuffle<0, 4, 1, 5>(x[0], x[1]);
    const S b = shuffle<0, 4, 1, 5>(x[2], x[3]);
    const S c = shuffle<2, 6, 3, 7>(x[0], x[1]);
    const S d = shuffle<2, 6, 3, 7>(x[2], x[3]);
    x[0] = shuffle<0, 1, 4, 5>(a, b);
    x[1] = shuffle<2, 3, 6, 7>(a, b);
    x[2] = shuffle<0, 1, 4, 5>(c, d);
    x[3] = shuffle<2, 3, 6, 7>(c, d);
  }

  template <class S>
  static ALIGNJAX_INLINE void flip_block(S (&x)[2]) {
    const S a = shuffle<0, 2>(x[0], x[1]);
    x[1] = shuffle<1, 3>(x[0], x[1]);
    x[0] = a;
  }

  template <int M, int N, class Epilogue>
  static ALIGNJAX_INLINE void tile(long inner, const Cell* a, long down, long along, const Cell* b,
                                   long step, long at, Epilogue& epilogue) {
    V sum[M][N] = {};
    for (long p = 0; p < inner; ++p) {
      V row[N];
      ALIGNJAX_UNROLL for (int j = 0; j < N; ++j) row[j] = get(b + j * Vec::lanes);
      ALIGNJAX_UNROLL for (int i = 0; i < M; ++i) {
        const V x = splat(a[i * down]);
        ALIGNJAX_UNROLL for (int j = 0; j < N; ++j) sum[i][j] += x * row[j];
      }
      a += along;
      b += step;
    }
    ALIGNJAX_UNROLL for (int i = 0; i < M; ++i) {
      ALIGNJAX_UNROLL for (int j = 0; j < N; ++j) {
        epilogue(at + i * step + j * Vec::lanes, sum[i][j], i);
      }
    }
  }

  // Result rows lie as far apart as those of b, which is as wide.
  template <class Epilogue>
  static void blocks(long m, long n, long inner, const Cell* a, long down, long along,
                     const Cell* b, long step, Epilogue epilogue) {
    long j = 0;
    // One or two rows fill no pipeline unless they are taken in longer pieces.
    for (constexpr int N = ALIGNJAX_ROWS; m <= 2 && j + N * Vec::lanes <= n; j += N * Vec::lanes) {
      if (m == 2) {
        tile<2, N>(inner, a, down, along, b + j, step, j, epilogue);
      } else {
        tile<1, N>(inner, a, down, along, b + j, step, j, epilogue);
      }
    }
    for (; j + 2 * Vec::lanes <= n; j += 2 * Vec::lanes) {
      strip<2>(m, inner, a, down, along, b + j, step, j, epilogue);
    }
    if (j < n) strip<1>(m, inner, a, down, along, b + j, step, j, epilogue);
  }

  template <int N, class Epilogue>
  static void strip(long m, long inner, const Cell* a, long down, long along, const Cell* b,
                    long step, long at, Epilogue& epilogue) {
    constexpr int M = ALIGNJAX_ROWS;
    long i = 0;
    for (; i + M <= m; i += M) {
      tile<M, N>(inner, a + i * down, down, along, b, step, at + i * step, epilogue);
    }
    if (M > 4 && i + 4 <= m) {
      tile<4, N>(inner, a + i * down, down, along, b, step, at + i * step, epilogue);
      i += 4;
    }
    if (i + 2 <= m) {
      tile<2, N>(inner, a + i * down, down, along, b, step, at + i * step, epilogue);
      i += 2;
    }
    if (i < m) tile<1, N>(inner, a + i * down, down, along, b, step, at + i * step, epilogue);
  }
};

}  // namespace
}  // namespace alignjax
