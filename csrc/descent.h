// Many steps, and what becomes of networks that diverge.
//
// Steps are taken in blocks. Within a block only a sufficient and cheap condition is looked at; if
// it fails for a network, the block is repeated from the state before it, with every risk and
// gradient examined, and the network is frozen at its last good state. So healthy runs pay for
// next to nothing, and a run that diverges costs one more block.
#pragma once

#include "chain.h"
#include "kernel.h"
#include "small.h"

namespace alignjax {
namespace {

constexpr std::int64_t kBlock = 32;

template <class P>
class Descent {
  using V = typename P::V;
  using Mask = typename P::Mask;
  using T = typename P::Number;
  using Cell = typename P::Cell;

 public:
  // With a null `scratch` it only counts bytes.
  Descent(const Shape& shape, P products, typename P::General general, void* scratch) {
    Arena arena{static_cast<char*>(scratch)};
    kept_ = arena.take<Kept>(1);
    Arena again = arena;
    begin(chain_, shape, products, arena);
    begin(general_, shape, general, again);
    for (auto& copy : copies_) copy = arena.take<char>(chain_.layers_bytes);
    bytes_ = arena.used;
  }

  std::size_t bytes() const { return bytes_; }

  void advance(const Network<T>* nets, int count, std::int64_t steps) {
    load(nets, count);
    std::uint64_t alive = (std::uint64_t{1} << count) - 1;
    char *&good = copies_[0], *&newer = copies_[1];
    std::int64_t at = 0;  // the state that `good` holds; from 1 on it is known to be good
    save(good);
    for (std::int64_t t = 0; t <= steps && alive != 0;) {
      const std::int64_t end = t + kBlock < steps + 1 ? t + kBlock : steps + 1;
      Mask fine = move(end - 1 - t);
      save(newer);
      fine &= move(1);
      t = end;
      if ((alive & ~(P::bits(fine) & finite())) != 0) {
        alive = examine(nets, alive, at, end);
      } else {
        swap(good, newer);
      }
      at = end - 1;
    }
    deliver(nets, alive, good, steps);
  }

 private:
  // Whether the states before them all have an acceptable risk; "no" is not certain.
  Mask move(std::int64_t count) {
    if constexpr (P::small) {
      if (chain_.depth == 2) return Small<P, P::width, 2>::steps(chain_, count);
      if (chain_.depth == 3) return Small<P, P::width, 3>::steps(chain_, count);
      if (chain_.depth == 4) return Small<P, P::width, 4>::steps(chain_, count);
    }
    Mask fine = ~Mask{};
    for (; count > 0; --count) fine &= chain_.template step<false>();
    return fine;
  }

  template <class Q>
  static void begin(Chain<Q>& chain, const Shape& shape, Q products, Arena& arena) {
    chain.products = products;
    chain.depth = static_cast<int>(shape.depth);
    chain.vertex = static_cast<int>(shape.vertex);
    chain.place(arena);
  }

  // Steps from state `first`, in copies_[0], to `end - 1`, which it leaves there. Networks whose
  // state is not good are delivered as they were before it, and are alive no more.
  std::uint64_t examine(const Network<T>* nets, std::uint64_t alive, std::int64_t first,
                        std::int64_t end) {
    char *&before = copies_[0], *&now = copies_[2];
    __builtin_memcpy(chain_.weights[1], before, chain_.layers_bytes);
    for (std::int64_t t = first; t < end && alive != 0; ++t) {
      save(now);
      const std::uint64_t bad = alive & ~P::bits(look());
      if (bad != 0) {
        deliver(nets, bad, t == 0 ? now : before, t == 0 ? 0 : t - 1);
        alive &= ~bad;
        for (int lane = 0; lane < P::networks; ++lane) {
          if (bad >> lane & 1) silence(lane);
        }
      }
      swap(before, now);
    }
    return alive;
  }

  __attribute__((noinline)) Mask look() { return general_.template step<true>(); }

  void deliver(const Network<T>* nets, std::uint64_t which, const char* copy, std::int64_t taken) {
    const char* base = reinterpret_cast<const char*>(chain_.weights[1]);
    for (int lane = 0; lane < P::networks; ++lane) {
      if ((which >> lane & 1) == 0) continue;
      for (int i = 1; i <= chain_.depth; ++i) {
        const auto offset = reinterpret_cast<const char*>(chain_.weights[i]) - base;
        chain_.products.unpack(reinterpret_cast<const Cell*>(copy + offset), i, i - 1, lane,
                               nets[lane].results[i - 1]);
      }
      *nets[lane].taken = static_cast<std::int32_t>(taken);
    }
  }

  // A frozen network would go on to infinity, or slowly through the smallest floats.
  void silence(int lane) {
    for (int i = 1; i <= chain_.depth; ++i) {
      P::set(chain_.rates[i], lane, 0);
      chain_.products.clear(chain_.weights[i], i, i - 1, lane);
    }
  }

  std::uint64_t finite() const {
    V sum{};
    for (int i = 1; i <= chain_.depth; ++i) {
      const Cell* at = chain_.weights[i];
      chain_.products.each(chain_.w(i), [&](long j) { sum += P::get(at + j) * V{}; });
    }
    return P::bits(P::total(sum) == V{});
  }

  void save(char* copy) const {
    __builtin_memcpy(copy, chain_.weights[1], chain_.layers_bytes);
  }

  static void swap(char*& a, char*& b) {
    char* spare = a;
    a = b;
    b = spare;
  }

  void load(const Network<T>* nets, int count) {
    auto& c = chain_;
    const int d = c.depth;
    bool shared = true;
    for (int lane = 0; lane < P::networks; ++lane) {
      // Idle lanes repeat the last network, so that they do what lanes do.
      const Network<T>& net = nets[lane < count ? lane : count - 1];
      for (int i = 1; i <= d; ++i) {
        c.products.pack(c.weights[i], i, i - 1, lane, net.weights[i - 1]);
        P::set(c.rates[i], lane, net.rates[i - 1]);
      }
      P::set(c.energy, lane, *net.energy);
      P::set(c.floor, lane, *net.floor);
      shared = shared && net.input_moment == nets[0].input_moment &&
               net.cross_moment == nets[0].cross_moment && net.minimizer == nets[0].minimizer &&
               net.slope == nets[0].slope;
    }
    const Kept now = {nets[0].input_moment, nets[0].cross_moment, nets[0].minimizer, nets[0].slope};
    const bool known = shared && now.input_moment == kept_->input_moment &&
                       now.cross_moment == kept_->cross_moment &&
                       now.minimizer == kept_->minimizer && now.slope == kept_->slope;
    if (!known) {
      for (int lane = 0; lane < P::networks; ++lane) {
        const Network<T>& net = nets[lane < count ? lane : count - 1];
        c.products.pack(c.input_moment, 0, 0, lane, net.input_moment);
        c.products.pack(c.cross_moment, d, 0, lane, net.cross_moment);
        c.products.pack(c.minimizer, d, 0, lane, net.minimizer);
        c.products.pack(c.slope, d, 0, lane, net.slope);
      }
      *kept_ = shared ? now : Kept{};
    }
    c.largest = P::splat(static_cast<T>(Limits<T>::largest));
    general_.energy = c.energy;
    general_.floor = c.floor;
    general_.largest = c.largest;
    bound();
  }

  // The squared norm of W up to which floor + 1/2 (|W||Sigma_xx| + |Sigma_yx| + |slope|)
  // (|W| + |W*|), which the risk does not pass, is at most a quarter of the largest one accepted.
  void bound() {
    auto& c = chain_;
    const int d = c.depth;
    const V moments = square(c.input_moment, 0), crosses = square(c.cross_moment, d),
            minimizers = square(c.minimizer, d), slopes = square(c.slope, d);
    constexpr double largest = Limits<T>::largest;
    for (int lane = 0; lane < P::networks; ++lane) {
      const double s = __builtin_sqrt(static_cast<double>(moments[lane]));
      const double e = __builtin_sqrt(static_cast<double>(crosses[lane])) +
                       __builtin_sqrt(static_cast<double>(slopes[lane]));
      const double w = __builtin_sqrt(static_cast<double>(minimizers[lane]));
      const double start = static_cast<double>(c.floor[lane]) + 0.5 * e * w;
      double norm = Limits<T>::norm;
      norm = least(norm, __builtin_sqrt(largest / (16 * s)));
      norm = least(norm, largest / (16 * s * w));
      norm = least(norm, largest / (16 * e));
      P::set(c.bound, lane, start <= largest / 8 ? static_cast<T>(norm * norm) : T{-1});
    }
  }

  // Not a number counts as 0: nothing is then taken for granted.
  static double least(double a, double b) { return b >= a ? a : b > 0 ? b : 0; }

  V square(const Cell* at, int rows) const {
    V sum{};
    chain_.products.each(Matrix<Cell>{nullptr, rows, 0}, [&](long i) {
      const V x = P::get(at + i);
      sum += x * x;
    });
    return P::total(sum);
  }

  // Moments that lie in scratch already, if all lanes shared them.
  struct Kept {
    const void* input_moment;
    const void* cross_moment;
    const void* minimizer;
    const void* slope;
  };

  Chain<P> chain_;
  Chain<typename P::General> general_;  // the same, on the same memory
  Kept* kept_;
  char* copies_[3];
  std::size_t bytes_;
};

}  // namespace
}  // namespace alignjax
