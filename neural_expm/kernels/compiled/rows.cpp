// exp and its Fréchet derivative, one n × n matrix after the other, for the sizes between batched.cpp and a BLAS.
//
// A row lies in whole registers, the last one padded with zeros, so that no entry is shuffled and a matrix may have its
// own depth and squarings.  A product keeps a block of rows × registers in registers and runs over k once.

#include "polynomial.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace {

constexpr int P = (N + W - 1) / W;  // registers of a row

struct Rows {
  static constexpr int STRIDE = P, TOKEN = N * P;

  // Entry (i, k) in all lanes, read as a scalar: the compiler broadcasts it as it loads.
  static num factor(const num* X, int i, int k) {
    const real* entry = reinterpret_cast<const real*>(X + i * P) + (PARTS == 2 ? k / W * 2 * W + k % W : k);
#if COMPLEX
    return {all_lanes(entry[0]), all_lanes(entry[W])};
#else
    return all_lanes(entry[0]);
#endif
  }

  // A block holds as many registers as leave room for its operands, in rows of equal height.
#if defined(__AVX512F__)
  static constexpr int HELD = 24 / PARTS, WIDEST = 4 / PARTS;
#else
  static constexpr int HELD = 10 / PARTS, WIDEST = 2 / PARTS;
#endif
  static constexpr int WIDTH = P < WIDEST ? P : WIDEST;
  static constexpr int HIGHEST = HELD / WIDTH < N ? HELD / WIDTH : N;
  static constexpr int BANDS = (N + HIGHEST - 1) / HIGHEST, HEIGHT = (N + BANDS - 1) / BANDS;

  // What a thread of a team computes: whole blocks, as nearly equal parts as there are.
  template <class Team>
  static Band band(const Team& team) {
    return {team.index * BANDS / team.size * HEIGHT, std::min(N, (team.index + 1) * BANDS / team.size * HEIGHT)};
  }

  // Columns outside, rows inside: the registers of Y that a column of blocks needs stay in the first-level cache.
  template <int C, bool ADD>
  static void column(const num* X, const num* Y, num* Z, int j, Band band) {
    int i = band.first;
    for (; i + HEIGHT <= band.last; i += HEIGHT) tile<Rows, HEIGHT, C, ADD>(X, Y, Z, i, j);
    if constexpr (N % HEIGHT != 0)
      if (i < band.last) tile<Rows, N % HEIGHT, C, ADD>(X, Y, Z, i, j);
  }

  // Rows of Z = X Y, or of Z += X Y.
  template <bool ADD>
  static void multiply(const num* X, const num* Y, num* Z, Band band) {
    int j = 0;
    for (; j + WIDTH <= P; j += WIDTH) column<WIDTH, ADD>(X, Y, Z, j, band);
    if constexpr (P % WIDTH != 0) column<P % WIDTH, ADD>(X, Y, Z, j, band);
  }

  template <int MEMBERS>
  static void product(const num* X, const num* Y, num* Z, Band band) {
    multiply<false>(X, Y, Z, band);
    if constexpr (MEMBERS == 2) {
      multiply<false>(X + TOKEN, Y, Z + TOKEN, band);
      multiply<true>(X, Y + TOKEN, Z + TOKEN, band);
    }
  }

  static real& part(num* X, int i, int j, int p) {
    return reinterpret_cast<real*>(X + i * P + j / W)[p * W + j % W];
  }

  // In whole registers: who reads one of which a part has just been written waits for memory.
  static void add_identity(num* X, real weight, Band band) {
    real around[2 * W - 1] = {};
    around[W - 1] = weight;
    for (int i = band.first; i < band.last; ++i) {
      vec unit;
      std::memcpy(&unit, around + W - 1 - i % W, sizeof unit);
      add_real(X[i * P + i / W], unit);
    }
  }

  static constexpr int LAST = N - (P - 1) * W;  // entries in the last register of a row

  static void load(const Source& A, int64_t at, real weight, num* X) {
    const real* matrix = A.data + at * A.matrix;
    if (A.column == PARTS)
      for (int i = 0; i < N; ++i) {
        for (int b = 0; b < P - 1; ++b) X[i * P + b] = read<W>(matrix + i * A.row + b * W * PARTS);
        X[i * P + P - 1] = read<LAST>(matrix + i * A.row + (P - 1) * W * PARTS);
      }
    else if (A.row == PARTS)
      load_columns(matrix, A.column, X);
    else
      for (int i = 0; i < N; ++i) {
        X[i * P + P - 1] = num{};
        for (int j = 0; j < N; ++j)
          for (int p = 0; p < PARTS; ++p) part(X, i, j, p) = matrix[i * A.row + j * A.column + p];
      }
    if (weight != 1) scale(X, weight);
#if COMPLEX
    if (A.conjugate)
      for (int e = 0; e < TOKEN; ++e) X[e].im = -X[e].im;
#endif
  }

  // From a matrix whose columns lie in one piece, as those of a transposed view do: square blocks, turned in registers.
  static void load_columns(const real* matrix, int64_t stride, num* X) {
    for (int b = 0; b < P; ++b) {
      for (int i = 0; i + W <= N; i += W) load_turned<W>(matrix, stride, i, b, X);
      if constexpr (N % W != 0) load_turned<N % W>(matrix, stride, N - N % W, b, X);
    }
  }

  template <int COUNT>
  static void load_turned(const real* matrix, int64_t stride, int i, int b, num* X) {
    num block[W] = {};
    const real* from = matrix + b * W * stride + i * PARTS;
    for (int l = 0; l < (b < P - 1 ? W : LAST); ++l) block[l] = read<COUNT>(from + l * stride);
    turn(block);
    for (int l = 0; l < COUNT; ++l) X[(i + l) * P + b] = block[l];
  }

  static void store(const num* X, int64_t at, real* out, Band band) {
    real* row = out + at * REALS + band.first * N * PARTS;
    for (int i = band.first; i < band.last; ++i, row += N * PARTS) {
      for (int b = 0; b < P - 1; ++b) write<W>(X[i * P + b], row + b * W * PARTS);
      write<LAST>(X[i * P + P - 1], row + (P - 1) * W * PARTS);
    }
  }

  // COUNT reals that lie in one piece, then zeros.  A masked load where there is one: a piece copied into a register of
  // zeros would wait for its way through memory.
  template <int COUNT>
  static vec piece(const real* from) {
#if defined(__AVX512F__)
    if constexpr (COUNT < W && sizeof(real) == 4)
      return vec(_mm512_maskz_loadu_ps(__mmask16((1u << COUNT) - 1), reinterpret_cast<const float*>(from)));
    if constexpr (COUNT < W && sizeof(real) == 8)
      return vec(_mm512_maskz_loadu_pd(__mmask8((1u << COUNT) - 1), reinterpret_cast<const double*>(from)));
#endif
    vec x = {};
    std::memcpy(&x, from, COUNT * sizeof(real));
    return x;
  }

  // COUNT entries, from and to a register.
#if COMPLEX
  template <std::size_t... L>
  static num split(vec a, vec b, std::index_sequence<L...>) {
    return {__builtin_shufflevector(a, b, (2 * L)...), __builtin_shufflevector(a, b, (2 * L + 1)...)};
  }
  template <int FIRST, std::size_t... L>
  static vec mixed(const num& x, std::index_sequence<L...>) {
    return __builtin_shufflevector(x.re, x.im, (FIRST + L / 2 + (L % 2) * W)...);
  }
  template <int COUNT>
  static num read(const real* from) {
    constexpr int LOW = 2 * COUNT < W ? 2 * COUNT : W, HIGH = 2 * COUNT - LOW;
    vec high = {};
    if constexpr (HIGH > 0) high = piece<HIGH>(from + W);
    return split(piece<LOW>(from), high, std::make_index_sequence<W>());
  }
  template <int COUNT>
  static void write(const num& x, real* to) {
    const auto lanes = std::make_index_sequence<W>();
    const vec halves[2] = {mixed<0>(x, lanes), mixed<W / 2>(x, lanes)};
    std::memcpy(to, halves, COUNT * 2 * sizeof(real));
  }
  static void turn(num* x) {
    vec re[W], im[W];
    for (int l = 0; l < W; ++l) re[l] = x[l].re, im[l] = x[l].im;
    transpose(re), transpose(im);
    for (int l = 0; l < W; ++l) x[l] = {re[l], im[l]};
  }
#else
  template <int COUNT>
  static num read(const real* from) {
    return piece<COUNT>(from);
  }
  template <int COUNT>
  static void write(const num& x, real* to) { std::memcpy(to, &x, COUNT * sizeof(real)); }
  static void turn(num* x) { transpose(x); }
#endif

  static void scale(num* X, real weight) {
    for (int e = 0; e < TOKEN; ++e) X[e] = scaled(X[e], weight);
  }

  // Sum of squared moduli.
  static real squares(const num* X) {
    vec sum[4] = {};
    int e = 0;
    for (; e + 4 <= TOKEN; e += 4)
#pragma GCC unroll 4
      for (int s = 0; s < 4; ++s) sum[s] += squared(X[e + s]);
    for (; e < TOKEN; ++e) sum[0] += squared(X[e]);
    const vec all = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    real total[W];
    std::memcpy(total, &all, sizeof all);
    for (int half = W / 2; half; half /= 2)
      for (int l = 0; l < half; ++l) total[l] += total[l + half];
    return total[0];
  }
};

// A matrix on its way to the second-level cache while another is computed: a large batch lies far away.  Always inline: a
// call of what does nothing but this is dropped for having no effect.
template <bool WRITE>
[[gnu::always_inline]] inline void fetch(const real* matrix) {
  constexpr int LINE = 64 / sizeof(real);
  for (int at = 0; at < REALS; at += LINE) __builtin_prefetch(matrix + at, WRITE, 2);
}

// The same for the next matrix of a thread that computes by itself, and for where this one's result goes.
template <class Team, class... Sources>
[[gnu::always_inline]] inline void fetch_around(int64_t at, int64_t last, real* out, const Sources&... sources) {
  if constexpr (Team::ALONE) {
    if (at + 1 < last) (fetch<false>(sources.data + (at + 1) * sources.matrix), ...);
    if (out) fetch<true>(out + at * REALS);
  }
}

// The first rung that serves a matrix: norm bound ≤ radii[r], or ‖A²‖_F^{1/2} ≤ majorants[r] while ‖A‖_F is at most
// `ratio` times that (see certificate.py); `rungs` where none does.
inline int first_rung(const Ladder& ladder, real norm, real root) {
  const bool usable = norm <= real(ladder.ratio) * root;
  for (int r = 0; r < ladder.rungs; ++r)
    if (norm <= ladder.radii[r] || (usable && root <= ladder.majorants[r])) return r;
  return int(ladder.rungs);
}

// One matrix of those before `last`; whether some rung serves it.
template <class Team>
inline bool value(const Source& A, int64_t at, int64_t last, const Ladder& ladder, bool trust, uint8_t* level,
                  num* stream, real* out, const Team& team) {
  num* square = stream + Rows::TOKEN;
  const int rungs = int(ladder.rungs);
  const Band band = Rows::band(team);
  Rows::load(A, at, 1, stream);
  fetch_around<Team>(at, last, out, A);
  Rows::product<1>(stream, stream, square, band);
  real norm = std::sqrt(Rows::squares(stream));
  if (!(norm <= ladder.radii[rungs - 1])) norm = careful_norm(A, at);  // or squares are out of range
  gather<Rows, 1>(team, square);
  // Agreed upon, or threads would wait for each other for ever where a program writes to A meanwhile.
  int rung = team.agree(first_rung(ladder, norm, std::sqrt(std::sqrt(Rows::squares(square)))));
  if (trust) rung = std::min(rung, rungs - 1);
  if (level && team.index == 0) level[at] = uint8_t(rung);
  if (!out || rung == rungs) return rung < rungs;
  const Network& net = ladder.nets[rung];
  if (net.squarings) {
    const real scale = scale_of(net);
    Rows::scale(stream, scale);
    Rows::scale(square, scale * scale);
  }
  Rows::store(evaluate<Rows, 1>(net, stream, true, team), at, out, band);
  return true;
}

template <class Team>
inline void frechet(const Source& A, const Source& E, int64_t at, int64_t last, const Network& net, num* stream,
                    real* out, const Team& team) {
  Rows::load(A, at, scale_of(net), stream);
  Rows::load(E, at, scale_of(net), stream + Rows::TOKEN);
  fetch_around<Team>(at, last, out, A, E);
  Rows::store(evaluate<Rows, 2>(net, stream, false, team), at, out, Rows::band(team));
}

// From this n on threads share a matrix where there are fewer matrices than threads (defined with the size).
constexpr int shared_from(int members) { return (members == 1 ? SHARED_FROM : SHARED_DERIVATIVE_FROM) / PARTS; }

// body(first, last, stream, team) for parts of the batch, or for all of it in every thread of a team; the largest of its
// results, negative where memory ran out.
template <int MEMBERS, class Body>
int in_rows(int64_t count, int64_t threads, const Ladder& ladder, const Body& body) noexcept {
  const int64_t nums = room<Rows>(ladder, MEMBERS);
  if (N >= shared_from(MEMBERS) && count < threads) try {
    const Workspace workspace(nums * std::min<int64_t>(threads, Member::MOST));
    int result = 0;
    const auto shared = [&](const Member& member) {
      const int own = body(0, count, workspace.get() + member.index * nums, member);
      if (member.index == 0) result = own;
    };
    if (as_team(threads, nums, shared)) return result;
  } catch (...) {
    return -1;
  }
  return guarded<1>(count, threads, [&](int64_t first, int64_t last) {
    const Workspace workspace(nums);
    return body(first, last, workspace.get(), Alone());
  });
}

}  // namespace

// --- the face: that of batched.cpp ---------------------------------------------------------------------------------------

extern "C" {

int neural_expm_value(const Source* A, int64_t count, const Ladder* ladder, int64_t trust, uint8_t* level, real* out,
                      int64_t threads) {
  return in_rows<1>(count, threads, *ladder, [&](int64_t first, int64_t last, num* stream, const auto& team) {
    bool outside = false;
    for (int64_t at = first; at < last; ++at) {
      if (at > first) team.meet();  // another may still fetch what is written over now
      outside |= !value(*A, at, last, *ladder, trust, level, stream, out, team);
    }
    return int(outside);
  });
}

int neural_expm_frechet(const Source* A, const Source* E, int64_t count, const Ladder* ladder, const uint8_t* level,
                        real* out, int64_t threads) {
  return in_rows<2>(count, threads, *ladder, [&](int64_t first, int64_t last, num* stream, const auto& team) {
    for (int64_t at = first; at < last; ++at) {
      if (level[at] == ladder->rungs) continue;
      if (at > first) team.meet();
      frechet(*A, *E, at, last, ladder->nets[std::max<int64_t>(level[at], ladder->least)], stream, out, team);
    }
    return 0;
  });
}
}
