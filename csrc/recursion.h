// Many steps of the recursion in singular values,
//   s_i <- s_i - eta_i g_i,   g_i = (lambda p - lambda') prod_{j != i} s_j,   p = prod_j s_j,
// mode by mode, and what becomes of runs that diverge.
//
// Lanes hold modes, of one run or of several. No mode needs another one until somebody asks for the
// risk, so the d numbers of a few vectors of modes stay in registers for a block of steps. As in
// descent.h a block looks at a sufficient and cheap condition only; where it fails, the run takes
// the block again, with every risk and gradient examined.
#pragma once

#include "kernel.h"
#include "vectors.h"

namespace alignjax {
namespace {

template <class Vec>
class Recursion {
  using V = typename Vec::type;
  using T = typename Vec::Number;
  static constexpr std::int64_t kSteps = 32;  // in a block
  static constexpr long kLanes = Vec::lanes;
  // A step of one vector is a chain of dependent operations; others fill the gaps. Unless it is
  // one vector, a pack is padded to whole groups.
  static constexpr long kGroup = 4;

 public:
  // With a null `scratch` it only counts bytes.
  Recursion(const ModesShape& shape, void* scratch) : depth_(shape.depth), rank_(shape.rank) {
    const long items = shape.runs * shape.rank, lanes = kGroup * kLanes;
    vectors_ = items <= kLanes ? 1 : (items + lanes - 1) / lanes * kGroup;
    Arena arena{static_cast<char*>(scratch)};
    kept_ = arena.take<bool>(1);
    alive_ = arena.take<bool>(shape.runs);
    fine_ = arena.take<std::uint64_t>(vectors_);
    rates_ = arena.take<V>(depth_ * vectors_);
    input_ = arena.take<V>(vectors_);
    target_ = arena.take<V>(vectors_);
    bound_ = arena.take<V>(vectors_);
    layers_ = arena.take<V>(depth_ * kGroup);
    products_ = arena.take<V>(depth_ * kGroup);
    for (auto& copy : copies_) copy = arena.take<V>(depth_ * vectors_);
    bytes_ = arena.used;
  }

  std::size_t bytes() const { return bytes_; }

  // `shared`: all runs of all calls have the same spectra, minimizer and floor.
  void advance(const Modes<T>* runs, long count, std::int64_t steps, bool shared) {
    load(runs, count, shared);
    long left = count;
    V *&good = copies_[0], *&newer = copies_[1];
    std::int64_t t = 0;  // of the state in `good`; from 1 on it is known to be good
    while (t < steps && left > 0) {
      const std::int64_t length = steps - t < kSteps ? steps - t : kSteps;
      if (!block(length)) {
        for (long run = 0; run < count; ++run) {
          if (!alive_[run] || surely_good(run) || examine(runs[run], run, t, length)) continue;
          alive_[run] = false;
          silence(run);
          --left;
        }
      }
      V* spare = good;
      good = newer;
      newer = spare;
      t += length;
    }
    for (long run = 0; run < count; ++run) {
      if (alive_[run]) deliver(runs[run], run, good, steps > 0 ? steps : 0);
    }
  }

 private:
  // One step of N vectors whose layers lie `N` apart in `s`; others, along, lie `stride` apart.
  // Says each product and each entry of the gradient before the step.
  template <int N, class Depth, class Product, class Gradient>
  static ALIGNJAX_INLINE void step(Depth depth, V* s, V* before, const V* rates, long stride,
                                   const V* input, const V* target, Product product,
                                   Gradient gradient) {
    const long d = depth;
    V slope[N], after[N] = {};
    ALIGNJAX_UNROLL for (int n = 0; n < N; ++n) {
      ALIGNJAX_UNROLL for (long i = 1; i < d; ++i) {
        before[i * N + n] =
            i == 1 ? s[n] : V(before[(i - 1) * N + n] * s[(i - 1) * N + n]);
      }
      const V last = s[(d - 1) * N + n];
      const V p = d == 1 ? last : V(before[(d - 1) * N + n] * last);
      slope[n] = input[n] * p - target[n];
      product(n, p);
    }
    ALIGNJAX_UNROLL for (long i = d - 1; i >= 0; --i) {
      ALIGNJAX_UNROLL for (int n = 0; n < N; ++n) {
        const V old = s[i * N + n];
        V x = slope[n];
        if (d > 1) {
          const V other = i == d - 1 ? before[i * N + n]
                          : i == 0       ? after[n]
                                         : V(before[i * N + n] * after[n]);
          x = other * slope[n];
          after[n] = i == d - 1 ? old : V(after[n] * old);
        }
        gradient(n, x);
        s[i * N + n] = old - rates[i * stride + n] * x;
      }
    }
  }

  // Steps from copies_[0] to copies_[1], and whether all lanes surely passed good states only.
  bool block(std::int64_t length) {
    switch (depth_) {
#define ALIGNJAX_DEPTH(D) \
  case D:                 \
    return block(Constant<D>{}, length);
      ALIGNJAX_DEPTH(1)
      ALIGNJAX_DEPTH(2)
      ALIGNJAX_DEPTH(3)
      ALIGNJAX_DEPTH(4)
      ALIGNJAX_DEPTH(5)
      ALIGNJAX_DEPTH(6)
      ALIGNJAX_DEPTH(7)
      ALIGNJAX_DEPTH(8)
#undef ALIGNJAX_DEPTH
      default:
        return block(depth_, length);
    }
  }

  template <class Depth>
  bool block(Depth depth, std::int64_t length) {
    return (vectors_ == 1 ? groups<1>(depth, length) : groups<kGroup>(depth, length)) == 0;
  }

  template <int N, long D>
  std::uint64_t groups(Constant<D> depth, std::int64_t length) {
    std::uint64_t bad = 0;
    for (long at = 0; at < vectors_; at += N) {
      V s[D * N], before[D * N];  // in registers
      bad |= group<N>(depth, length, at, s, before);
    }
    return bad;
  }

  template <int N>
  std::uint64_t groups(long depth, std::int64_t length) {
    std::uint64_t bad = 0;
    for (long at = 0; at < vectors_; at += N) {
      bad |= group<N>(depth, length, at, layers_, products_);
    }
    return bad;
  }

  // Which lanes of N vectors did not surely pass good states only.
  template <int N, class Depth>
  ALIGNJAX_INLINE std::uint64_t group(Depth depth, std::int64_t length, long at, V* s, V* before) {
    const long d = depth;
    const V *input = input_ + at, *target = target_ + at, *rates = rates_ + at;
    V squares[N] = {}, finite[N] = {};
    const auto square = [&](int n, V p) { squares[n] += p * p; };
    ALIGNJAX_UNROLL for (long i = 0; i < d; ++i) {
      ALIGNJAX_UNROLL for (int n = 0; n < N; ++n) {
        s[i * N + n] = copies_[0][i * vectors_ + at + n];
      }
    }
    for (std::int64_t t = 0; t < length; ++t) {
      step<N>(depth, s, before, rates, vectors_, input, target, square, [](int, V) {});
    }
    ALIGNJAX_UNROLL for (long i = 0; i < d; ++i) {
      ALIGNJAX_UNROLL for (int n = 0; n < N; ++n) {
        copies_[1][i * vectors_ + at + n] = s[i * N + n];
      }
    }
    // One step more, for nobody: a gradient that is not finite shows in the product after it, but
    // the last one has none.
    step<N>(depth, s, before, rates, vectors_, input, target, square,
            [&](int n, V x) { finite[n] += x * V{}; });
    std::uint64_t bad = 0;
    ALIGNJAX_UNROLL for (int n = 0; n < N; ++n) {
      const auto fine = (squares[n] <= bound_[at + n]) & (finite[n] == V{});
      fine_[at + n] = Vec::bits(fine);
      bad |= ~fine_[at + n] & kAll;
    }
    return bad;
  }

  static constexpr std::uint64_t kAll = (std::uint64_t{1} << kLanes) - 1;

  bool surely_good(long run) const {
    for (long item = run * rank_; item < (run + 1) * rank_; ++item) {
      if ((fine_[item / kLanes] >> item % kLanes & 1) == 0) return false;
    }
    return true;
  }

  // Takes the block of steps from copies_[0], at step `t`, again. If a state is not good the run
  // is delivered as it was before it, and the answer is false.
  __attribute__((noinline)) bool examine(const Modes<T>& modes, long run, std::int64_t t,
                                         std::int64_t length) {
    const long first = run * rank_ / kLanes, end = ((run + 1) * rank_ - 1) / kLanes + 1;
    V *before = copies_[2], *now = copies_[3], *next = copies_[4];
    for (long i = 0; i < depth_; ++i) {
      for (long at = first; at < end; ++at) at_layer(now, i)[at] = at_layer(copies_[0], i)[at];
    }
    for (const std::int64_t last = t + length; t <= last; ++t) {
      if (!look(modes, run, first, end, now, next)) {
        deliver(modes, run, t == 0 ? now : before, t == 0 ? 0 : t - 1);
        return false;
      }
      V* spare = before;
      before = now;
      now = next;
      next = spare;
    }
    return true;
  }

  // Whether the state of a run is good; one step leads to `next`.
  bool look(const Modes<T>& modes, long run, long first, long end, const V* now, V* next) {
    T excess = 0, finite = 0;
    for (long at = first; at < end; ++at) {
      V product{}, flaw{};
      for (long i = 0; i < depth_; ++i) layers_[i] = at_layer(now, i)[at];
      step<1>(
          depth_, layers_, products_, rates_ + at, vectors_, input_ + at, target_ + at,
          [&](int, V p) { product = p; }, [&](int, V x) { flaw += x * V{}; });
      for (long i = 0; i < depth_; ++i) at_layer(next, i)[at] = layers_[i];
      for (long lane = 0; lane < kLanes; ++lane) {
        const long mode = at * kLanes + lane - run * rank_;
        if (mode < 0 || mode >= rank_) continue;
        const T off = product[lane] - modes.minimizer[mode];
        excess += T(0.5) * (input_[at][lane] * off) * off;
        finite += flaw[lane];
      }
    }
    return finite == 0 && *modes.floor + excess <= static_cast<T>(Limits<T>::largest);
  }

  void load(const Modes<T>* runs, long count, bool shared) {
    for (long run = 0; run < count; ++run) {
      const Modes<T>& modes = runs[run];
      alive_[run] = true;
      for (long i = 0; i < depth_; ++i) {
        const T rate = modes.rates[i];
        T* rates = of_run(rates_ + i * vectors_, run);
        for (long k = 0; k < rank_; ++k) rates[k] = rate;
        move(of_run(at_layer(copies_[0], i), run), modes.values[i]);
      }
      if (!*kept_) load_problem(modes, run);
    }
    *kept_ = shared;
    // Lanes without a run stay where they are.
    for (long i = 0; i < depth_; ++i) {
      for (long item = count * rank_; item < vectors_ * kLanes; ++item) {
        reinterpret_cast<T*>(rates_ + i * vectors_)[item] = 0;
        reinterpret_cast<T*>(at_layer(copies_[0], i))[item] = 0;
      }
    }
  }

  // Its spectra, and the sum of p^2 up to which 1/2 |lambda| (p - p*)^2, no more than
  // |lambda| (p^2 + p*^2), is surely at most a mode's share of half the largest risk.
  void load_problem(const Modes<T>& modes, long run) {
    move(of_run(input_, run), modes.input);
    move(of_run(target_, run), modes.target);
    constexpr T largest = static_cast<T>(Limits<T>::largest);
    const T share = (T(0.5) * largest - magnitude(*modes.floor)) / static_cast<T>(rank_);
    T* bound = of_run(bound_, run);
    for (long k = 0; k < rank_; ++k) {
      const T best = modes.minimizer[k];
      const T sum = share / magnitude(modes.input[k]) - best * best;
      bound[k] = sum > Limits<T>::finite ? static_cast<T>(Limits<T>::finite) : sum;
      if (!(share >= 0)) bound[k] = -1;  // the floor alone is too high, or not a number
    }
  }

  void deliver(const Modes<T>& modes, long run, const V* state, std::int64_t taken) {
    for (long i = 0; i < depth_; ++i) {
      move(modes.results[i], of_run(const_cast<V*>(at_layer(state, i)), run));
    }
    *modes.taken = static_cast<std::int32_t>(taken);
  }

  // A frozen run would go on to infinity.
  void silence(long run) {
    for (long i = 0; i < depth_; ++i) {
      T* rates = of_run(rates_ + i * vectors_, run);
      T* values = of_run(at_layer(copies_[1], i), run);
      for (long k = 0; k < rank_; ++k) rates[k] = values[k] = 0;
    }
  }

  template <class State>
  State at_layer(State state, long i) const {
    return state + i * vectors_;
  }
  T* of_run(V* all, long run) const { return reinterpret_cast<T*>(all) + run * rank_; }
  void move(T* to, const T* from) const {
    for (long k = 0; k < rank_; ++k) to[k] = from[k];
  }
  static T magnitude(T x) { return x <= 0 ? 0 - x : x; }  // not -0, by which one may divide

  const long depth_, rank_;
  long vectors_;
  bool* kept_;           // whether spectra and bounds in scratch are those of all calls
  bool* alive_;          // by run
  std::uint64_t* fine_;  // by vector, a bit for each lane that surely passed good states only
  V *rates_, *input_, *target_, *bound_;
  V* layers_;    // one vector's layers
  V* products_;  // of layers
  V* copies_[5];  // states, layer by layer: at the block's start and end, and three to examine
  std::size_t bytes_;
};

}  // namespace
}  // namespace alignjax
