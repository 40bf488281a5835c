// The kernels for GPUs: all steps of a segment, with the weights on the chip. What a thread does is
// written here once; launch.cu compiles it for cards, emulated.cc for the host, to be tested there.
//
// In lanes, a network is a thread's, its layers square (Python fills them up with zeros, which
// changes nothing) and in registers. In tiles, a network is a block's: the chain of chain.h, with
// matrices in shared memory and threads that share the entries of every product.
#pragma once

#include "../chain.h"
#include "job.h"

#ifdef __CUDACC__
#define ALIGNJAX_DEVICE __device__
#else
#define ALIGNJAX_DEVICE
#endif

namespace alignjax {
namespace {

// An operand's numbers for the network at `index` of the batch.
template <class T>
ALIGNJAX_INLINE const T* part(const Operand& operand, const Job& job, std::int64_t index) {
  const char* at = operand.data;
  for (int axis = job.axes - 1; axis > 0; --axis) {
    at += index % job.sizes[axis] * operand.strides[axis];
    index /= job.sizes[axis];
  }
  return reinterpret_cast<const T*>(job.axes > 0 ? at + index * operand.strides[0] : at);
}

// The state before the first bad one, and the steps taken until there.
//
// A second copy of the weights, the state to return to, would cost a third of the registers.
// Instead the first round counts; if it meets a bad state, a second one starts anew and stops in
// time. Both are one loop, so that they round alike.
//
// `step` moves the weights and says whether the state before was good; `load` and `store` begin
// and deliver.
template <class Load, class Step, class Store>
ALIGNJAX_INLINE std::int32_t rounds(std::int32_t steps, Load load, Step step, Store store) {
  std::int32_t limit = steps;
  for (int round = 0; round < 2; ++round) {
    load();
    bool fine = true;
    std::int32_t t = 0;
    for (;; ++t) {
      if (t == limit) store();  // the state after the last step is still to be looked at
      fine = step();
      if (!fine || t == limit) break;
    }
    if (fine) break;
    limit = t > 0 ? t - 1 : 0;
  }
  return limit;
}

// -- Lanes --

// Products of square matrices in registers. Entries of a lie at `a[i * R + p * C]`, those of b at
// `b[p * S + j * U]`.
template <int K, int R, int C, int S, int U, class T, class F>
ALIGNJAX_INLINE void product(const T* a, const T* b, F result) {
  ALIGNJAX_UNROLL for (int i = 0; i < K; ++i) {
    ALIGNJAX_UNROLL for (int j = 0; j < K; ++j) {
      T sum{};
      ALIGNJAX_UNROLL for (int p = 0; p < K; ++p) sum += a[i * R + p * C] * b[p * S + j * U];
      result(i * K + j, sum);
    }
  }
}

template <class T, int K, int D>
struct Lane {
  static constexpr int kSize = K * K;

  T w[D][kSize], rates[D];
  const T *input_moment, *cross_moment, *minimizer, *slope;
  T floor;

  // As `Chain::step<true>()`.
  ALIGNJAX_INLINE bool step() {
    T left[D][kSize];  // left[i] = W_D...W_{i+1}, of which the last one is W_D itself
    T signal[kSize], next[kSize];
    T finite{}, above{};
    ALIGNJAX_UNROLL for (int e = 0; e < kSize; ++e) left[D - 1][e] = w[D - 1][e];
    ALIGNJAX_UNROLL for (int i = D - 2; i >= 0; --i) {
      product<K, K, 1, K, 1>(left[i + 1], w[i], [&](int e, T x) { left[i][e] = x; });
    }
    product<K, K, 1, K, 1>(left[0], input_moment, [&](int e, T x) {
      signal[e] = x - cross_moment[e];
      above += (signal[e] + slope[e]) * (left[0][e] - minimizer[e]);
    });
    const T risk = floor + T(0.5) * above;
    ALIGNJAX_UNROLL for (int i = 0; i < D - 1; ++i) {
      product<K, K, 1, 1, K>(signal, w[i], [&](int e, T x) { next[e] = x; });
      product<K, 1, K, K, 1>(left[i + 1], signal, [&](int e, T x) {
        finite += x * T{};
        w[i][e] -= rates[i] * x;
      });
      ALIGNJAX_UNROLL for (int e = 0; e < kSize; ++e) signal[e] = next[e];
    }
    ALIGNJAX_UNROLL for (int e = 0; e < kSize; ++e) {
      finite += signal[e] * T{};
      w[D - 1][e] -= rates[D - 1] * signal[e];
    }
    constexpr T largest = static_cast<T>(Limits<T>::largest);
    return (risk <= largest) & (risk * T{} == T{}) & (finite == T{});
  }
};

template <class T, int K, int D>
ALIGNJAX_DEVICE void lane(const Job& job, std::int64_t index) {
  Lane<T, K, D> net;
  const T* from = part<T>(job.layers, job, index);
  const T* rates = part<T>(job.rates, job, index);
  ALIGNJAX_UNROLL for (int i = 0; i < D; ++i) net.rates[i] = rates[i];
  net.input_moment = part<T>(job.input_moment, job, index);
  net.cross_moment = part<T>(job.cross_moment, job, index);
  net.minimizer = part<T>(job.minimizer, job, index);
  net.slope = part<T>(job.slope, job, index);
  net.floor = *part<T>(job.floor, job, index);
  T* to = reinterpret_cast<T*>(job.moved) + index * job.entries;
  constexpr int size = Lane<T, K, D>::kSize;
  job.taken[index] = rounds(
      *job.steps,
      [&] {
        ALIGNJAX_UNROLL for (int i = 0; i < D; ++i) {
          ALIGNJAX_UNROLL for (int e = 0; e < size; ++e) net.w[i][e] = from[i * size + e];
        }
      },
      [&] { return net.step(); },
      [&] {
        ALIGNJAX_UNROLL for (int i = 0; i < D; ++i) {
          ALIGNJAX_UNROLL for (int e = 0; e < size; ++e) to[i * size + e] = net.w[i][e];
        }
      });
}

// Calls `f(Constant<K>, Constant<D>)` if there is a kernel of this width and depth: those whose
// weights and products find room in the registers. Whether there is one.
template <class T, class F>
bool with_lane(std::int64_t width, std::int64_t depth, F f) {
#define ALIGNJAX_LANE(K, D)         \
  if (width == K && depth == D) {   \
    f(Constant<K>{}, Constant<D>{}); \
    return true;                    \
  }
  ALIGNJAX_LANE(2, 1)
  ALIGNJAX_LANE(2, 2)
  ALIGNJAX_LANE(2, 3)
  ALIGNJAX_LANE(2, 4)
  ALIGNJAX_LANE(3, 1)
  ALIGNJAX_LANE(3, 2)
  ALIGNJAX_LANE(3, 3)
  ALIGNJAX_LANE(3, 4)
  ALIGNJAX_LANE(4, 1)
  ALIGNJAX_LANE(4, 2)
  ALIGNJAX_LANE(4, 3)
  if constexpr (sizeof(T) == 4) {
    ALIGNJAX_LANE(4, 4)
  }
#undef ALIGNJAX_LANE
  return false;
}

// -- Tiles --

// Products of one network's matrices, by all threads of a block: entries are shared out, and every
// operation ends when all threads have done theirs. R is the side of the tile of a product that a
// thread takes at a time.
template <class T, int R, class Threads>
struct Tiles {
  using V = T;
  using Mask = bool;
  using Number = T;
  using Cell = T;
  static constexpr bool square = false;
  static constexpr int kRows = 1;

  const std::int64_t* widths;
  Threads threads;
  T* parts;  // of a sum, one a thread and one a group

  static constexpr int kGroups = 16;

  static ALIGNJAX_INLINE V get(const Cell* at) { return *at; }
  static ALIGNJAX_INLINE void put(Cell* at, V x) { *at = x; }
  static ALIGNJAX_INLINE V splat(Number x) { return x; }
  // A thread's own share: whoever asks whether all is well asks all threads.
  static ALIGNJAX_INLINE V total(V x) { return x; }

  ALIGNJAX_INLINE int k(int i) const { return static_cast<int>(widths[i]); }
  // The distance of rows: an odd one, so that the entries of a column lie in different banks.
  ALIGNJAX_INLINE int across(int cols) const { return k(cols) | 1; }
  ALIGNJAX_INLINE std::size_t cells(int rows, int cols) const {
    return static_cast<std::size_t>(k(rows)) * static_cast<std::size_t>(across(cols));
  }
  ALIGNJAX_INLINE void place(Arena&, int) const {}

  template <class F>
  ALIGNJAX_INLINE void each(Matrix<Cell> m, F f) const {
    share(m, [&](int at, int) { f(at); });
    threads.barrier();
  }

  template <class F>
  ALIGNJAX_INLINE V sum(Matrix<Cell> m, F f) const {
    V part{};
    share(m, [&](int at, int) { f(at, part); });
    parts[threads.index()] = part;
    threads.barrier();
    V* groups = parts + threads.count();
    if (threads.index() < kGroups) {
      V group{};
      for (int i = threads.index(); i < threads.count(); i += kGroups) group += parts[i];
      groups[threads.index()] = group;
    }
    threads.barrier();
    V out{};
    ALIGNJAX_UNROLL for (int i = 0; i < kGroups; ++i) out += groups[i];
    threads.barrier();
    return out;
  }

  ALIGNJAX_INLINE void pack(Cell* to, int rows, int cols, const Number* from) const {
    share(Matrix<Cell>{to, rows, cols}, [&](int at, int i) { to[at] = from[i]; });
  }

  ALIGNJAX_INLINE void unpack(const Cell* from, int rows, int cols, Number* to) const {
    share(Matrix<Cell>{nullptr, rows, cols}, [&](int at, int i) { to[i] = from[at]; });
  }

  template <class Epilogue>
  ALIGNJAX_INLINE void multiply(Matrix<Cell> a, Matrix<Cell> b, Epilogue epilogue) const {
    blocks(k(a.rows), k(b.cols), k(a.cols), a.at, across(a.cols), 1, b.at, across(b.cols), 1,
           across(b.cols), epilogue);
  }

  template <class Epilogue>
  ALIGNJAX_INLINE void multiply(Transposed<Cell> a, Matrix<Cell> b, Epilogue epilogue) const {
    blocks(k(a.of.cols), k(b.cols), k(a.of.rows), a.of.at, 1, across(a.of.cols), b.at,
           across(b.cols), 1, across(b.cols), epilogue);
  }

  template <class Epilogue>
  ALIGNJAX_INLINE void multiply(Matrix<Cell> a, Transposed<Cell> b, Epilogue epilogue) const {
    blocks(k(a.rows), k(b.of.rows), k(a.cols), a.at, across(a.cols), 1, b.of.at, 1,
           across(b.of.cols), across(b.of.rows), epilogue);
  }

 private:
  // `f(offset with distant rows, offset with rows side by side)` of the entries of this thread.
  template <class F>
  ALIGNJAX_INLINE void share(Matrix<Cell> m, F f) const {
    const int cols = k(m.cols), count = k(m.rows) * cols, step = across(m.cols);
    for (int i = threads.index(); i < count; i += threads.count()) {
      f(i / cols * step + i % cols, i);
    }
  }

  // Neighbouring threads take neighbouring columns, so that they read in different banks.
  template <class Epilogue>
  ALIGNJAX_INLINE void blocks(int m, int n, int inner, const Cell* a, int down, int along,
                              const Cell* b, int below, int beside, int step,
                              Epilogue epilogue) const {
    const int rows = (m + R - 1) / R, cols = (n + R - 1) / R;
    for (int tile = threads.index(); tile < rows * cols; tile += threads.count()) {
      const int row = tile / cols, col = tile % cols;
      const Cell *left[R], *right[R];
      T sum[R][R] = {};
      // Beyond the edge the last row or column is read again, and the result dropped.
      ALIGNJAX_UNROLL for (int i = 0; i < R; ++i) {
        const int r = row + i * rows, c = col + i * cols;
        left[i] = a + (r < m ? r : m - 1) * down;
        right[i] = b + (c < n ? c : n - 1) * beside;
      }
      for (int p = 0; p < inner; ++p) {
        T x[R], y[R];
        ALIGNJAX_UNROLL for (int i = 0; i < R; ++i) {
          x[i] = left[i][p * along];
          y[i] = right[i][p * below];
        }
        ALIGNJAX_UNROLL for (int i = 0; i < R; ++i) {
          ALIGNJAX_UNROLL for (int j = 0; j < R; ++j) sum[i][j] += x[i] * y[j];
        }
      }
      ALIGNJAX_UNROLL for (int i = 0; i < R; ++i) {
        ALIGNJAX_UNROLL for (int j = 0; j < R; ++j) {
          const int r = row + i * rows, c = col + j * cols;
          if (r < m && c < n) epilogue(r * step + c, sum[i][j], 0);
        }
      }
    }
    threads.barrier();
  }
};

// Lays out a chain. Without addresses in `arena` it only counts, on the host too.
template <class T, int R, class Threads>
ALIGNJAX_INLINE void lay_out(Chain<Tiles<T, R, Threads>>& chain, const Job& job, Threads threads,
                             Arena& arena) {
  const std::size_t parts = static_cast<std::size_t>(job.threads + Tiles<T, R, Threads>::kGroups);
  chain.products = {job.widths, threads, arena.take<T>(parts)};
  chain.depth = job.depth;
  chain.vertex = job.vertex;
  chain.largest = static_cast<T>(Limits<T>::largest);
  chain.place(arena);
}

// The networks of one block: every `job.blocks`-th one.
template <class T, int R, class Threads>
ALIGNJAX_DEVICE void tiles(const Job& job, Threads threads, char* shared, std::int64_t block) {
  Arena arena{shared, job.on_chip, job.scratch + block * job.scratch_bytes};
  Chain<Tiles<T, R, Threads>> chain;
  lay_out<T, R>(chain, job, threads, arena);
  const auto& products = chain.products;
  const int d = job.depth;
  threads.barrier();  // all threads write the same addresses
  const T *input_moment = nullptr, *cross_moment = nullptr, *minimizer = nullptr, *slope = nullptr;
  // What networks share is read once.
  const auto read = [&](const T*& known, const Operand& operand, T* to, int rows,
                        std::int64_t index) {
    const T* from = part<T>(operand, job, index);
    if (from != known) products.pack(to, rows, 0, from);
    known = from;
  };
  for (std::int64_t index = block; index < job.networks; index += job.blocks) {
    read(input_moment, job.input_moment, chain.input_moment, 0, index);
    read(cross_moment, job.cross_moment, chain.cross_moment, d, index);
    read(minimizer, job.minimizer, chain.minimizer, d, index);
    read(slope, job.slope, chain.slope, d, index);
    chain.energy = *part<T>(job.energy, job, index);
    chain.floor = *part<T>(job.floor, job, index);
    const T* rates = part<T>(job.rates, job, index);
    for (int i = threads.index(); i < d; i += threads.count()) chain.rates[i + 1] = rates[i];
    const T* from = part<T>(job.layers, job, index);
    T* to = reinterpret_cast<T*>(job.moved) + index * job.entries;
    const std::int32_t taken = rounds(
        *job.steps,
        [&] {
          for (int i = 1, at = 0; i <= d; at += products.k(i) * products.k(i - 1), ++i) {
            products.pack(chain.weights[i], i, i - 1, from + at);
          }
          threads.barrier();
        },
        [&] { return threads.all(chain.template step<true>()); },
        [&] {
          for (int i = 1, at = 0; i <= d; at += products.k(i) * products.k(i - 1), ++i) {
            products.unpack(chain.weights[i], i, i - 1, to + at);
          }
          threads.barrier();
        });
    if (threads.index() == 0) job.taken[index] = taken;
  }
}

// Calls `f(T{}, Constant<R>)` with the kernel for this precision and side of tiles.
template <class F>
void with_tiles(const Job& job, F f) {
  if (job.item == 4) {
    job.side == 2 ? f(float{}, Constant<2>{}) : f(float{}, Constant<4>{});
  } else {
    job.side == 2 ? f(double{}, Constant<2>{}) : f(double{}, Constant<4>{});
  }
}

}  // namespace
}  // namespace alignjax
