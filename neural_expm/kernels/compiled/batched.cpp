// exp and its Fréchet derivative for many small n × n matrices on a CPU.
//
// The residual stream of the W matrices of a register stays in the first-level cache; weights, depth and squarings are
// run-time arguments, so that one library serves every tier.

#include "polynomial.h"

#include <numeric>

namespace {

// --- a register -------------------------------------------------------------------------------------------------------

struct Lanes {
  static constexpr int TOKEN = ENTRIES;
  static constexpr Band band(Alone) { return {0, N}; }  // no two threads share a register
  template <int MEMBERS>
  static void product(const num* X, const num* Y, num* Z, Band) {
    ::product<MEMBERS>(X, Y, Z);
  }
  static void add_identity(num* X, real weight, Band) {
    for (int i = 0; i < N; ++i) add_real(X[i * N + i], weight);
  }
};

// One register's worth of matrices, all with the same network.
template <int MEMBERS>
inline void evaluate_register(const Source& A, const Source& E, const int64_t* at, int lanes, const Network& net,
                              num* stream, real* out) {
  load(A, at, scale_of(net), stream);
  if constexpr (MEMBERS == 2) load(E, at, scale_of(net), stream + ENTRIES);
  store(evaluate<Lanes, MEMBERS>(net, stream, false, Alone()), at, lanes, out);
}

// --- norms ------------------------------------------------------------------------------------------------------------

inline vec root(vec x) {
  vec y;
  for (int l = 0; l < W; ++l) y[l] = std::sqrt(x[l]);
  return y;
}

inline vec larger(const vec& a, const vec& b) { return a > b ? a : b; }

// Level of W matrices: the first rung whose radius reaches the norm, `rungs` where none does.  (The radii for ‖A²‖^{1/2}
// are for rows.cpp, which forms A² anyway.)
inline void find_levels(const Source& A, const int64_t* at, const Ladder& ladder, num* X, int* level) {
  load(A, at, 1, X);
  vec columns[N] = {}, widest = {}, tallest = {}, frobenius = {};
  for (int i = 0; i < N; ++i) {
    vec row = {};
    for (int j = 0; j < N; ++j) {
      const vec square = squared(X[i * N + j]);
#if COMPLEX
      const vec modulus = root(square);
#else
      const vec modulus = larger(X[i * N + j], -X[i * N + j]);
#endif
      frobenius += square;
      row += modulus;
      columns[j] += modulus;
    }
    widest = larger(row, widest);
  }
  for (int j = 0; j < N; ++j) tallest = larger(columns[j], tallest);
  const vec mixed = root(widest) * root(tallest), euclid = root(frobenius);
  const vec bound = mixed < euclid ? mixed : euclid;
  auto passed = bound != bound;  // zeros of the integer type of comparisons
  passed -= passed;
  for (int r = 0; r < ladder.rungs; ++r) passed += bound > ladder.radii[r];
  for (int l = 0; l < W; ++l) {
    level[l] = -int(passed[l]);
    // Squares out of range, or NaN, which comparisons lose: rare, so one by one.
    if (!(euclid[l] <= std::numeric_limits<real>::max())) {
      const real careful = careful_norm(A, at[l]);
      level[l] = 0;
      for (int r = 0; r < ladder.rungs; ++r) level[l] += !(careful <= ladder.radii[r]);
    }
  }
}

// --- a part of the batch ------------------------------------------------------------------------------------------------

// Matrices whose levels are sorted together: enough that registers fill up with like ones, few enough that the second
// look at them finds them in the cache.
constexpr int TILE = std::max(8 * W, std::min(512, (1 << 18) / int(REALS * sizeof(real)) / W * W));

// Whether W neighbours are computed as they lie, by the deepest of their rungs: each squaring too many costs a matrix half
// a digit, and WORTH_SORTING (products; defined with the size) is not to be had.  If so their levels become that one.
inline bool alike(const Ladder& ladder, uint8_t* level) {
  const auto [least, deepest] = std::minmax_element(level, level + W);
  if (*deepest >= ladder.rungs) return false;
  const Network &shallow = ladder.nets[*least], &deep = ladder.nets[*deepest];
  const int64_t squarings = deep.squarings - shallow.squarings;
  if (squarings > 1 || squarings + deep.products - shallow.products >= WORTH_SORTING) return false;
  std::fill_n(level, W, *deepest);
  return true;
}

// The matrices first … first + length − 1 in order of `level`; returns how many of them some rung serves.
inline int sort_by_level(const uint8_t* level, int64_t first, int length, int rungs, int64_t* order) {
  int begins[257] = {};
  for (int i = 0; i < length; ++i) ++begins[level[i] + 1];
  for (int r = 0; r <= rungs; ++r) begins[r + 1] += begins[r];
  for (int i = 0; i < length; ++i) order[begins[level[i]]++] = first + i;
  return begins[rungs - 1];
}

// Evaluates a tile, W matrices of the order at a time, or fewer where one squaring too many would not do, by the deepest
// rung among them; `level`, of the tile, becomes what was used.
template <int MEMBERS>
inline void evaluate_tile(const Source& A, const Source& E, int64_t first, int length, const Ladder& ladder,
                          uint8_t* level, num* stream, real* out) {
  int64_t order[TILE];
  const int served = sort_by_level(level, first, length, int(ladder.rungs), order);
  for (int i = 0, lanes; i < served; i += lanes) {
    const auto squarings = [&](int l) { return ladder.nets[level[order[i + l] - first]].squarings; };
    lanes = std::min(W, served - i);
    while (squarings(lanes - 1) > squarings(0) + 1) --lanes;
    int64_t at[W];
    for (int l = 0; l < W; ++l) at[l] = order[i + (l < lanes ? l : 0)];  // idle lanes repeat a matrix
    const uint8_t deepest = level[at[lanes - 1] - first];
    for (int l = 0; l < lanes; ++l) level[at[l] - first] = deepest;
    if (out) evaluate_register<MEMBERS>(A, E, at, lanes, ladder.nets[deepest], stream, out);
  }
}

}  // namespace

// --- the face ---------------------------------------------------------------------------------------------------------
// Negative is out of memory.

extern "C" {

// out = p(A/2^s)^(2^s) with the rung of each matrix, which is also written to `level`, unless that is null (`rungs` for a
// matrix that no rung serves: its rows are left alone, unless `trust` gives it the last rung).  Without `out` only the
// levels.  Returns 1 where a matrix was not served.
int neural_expm_value(const Source* A, int64_t count, const Ladder* ladder, int64_t trust, uint8_t* level, real* out,
                      int64_t threads) {
  return guarded(count, threads, [&](int64_t first, int64_t last) {
    const Workspace workspace(room<Lanes>(*ladder, 1));
    const int rungs = int(ladder->rungs);
    uint8_t used[TILE];
    bool outside = false;
    for (int64_t tile = first; tile < last; tile += TILE) {
      const int length = int(std::min<int64_t>(TILE, last - tile));
      int rest = 0;  // of the tile, from here on; those before were alike
      for (int i = 0; i < length; i += W) {
        int64_t at[W];
        int found[W];
        for (int l = 0; l < W; ++l) at[l] = tile + std::min(i + l, length - 1);
        find_levels(*A, at, *ladder, workspace.get(), found);
        for (int l = 0; l < std::min(W, length - i); ++l) {
          used[i + l] = uint8_t(trust ? std::min(found[l], rungs - 1) : found[l]);
          outside |= used[i + l] == rungs;
        }
        if (rest == i && i + W <= length && alike(*ladder, used + i)) {
          if (out) evaluate_register<1>(*A, *A, at, W, ladder->nets[used[i]], workspace.get(), out);
          rest = i + W;
        }
      }
      evaluate_tile<1>(*A, *A, tile + rest, length - rest, *ladder, used + rest, workspace.get(), out);
      if (level) std::copy(used, used + length, level + tile);
    }
    return int(outside);
  });
}

// out = L(A, E) by the rung of each matrix that `level` names, or the least one for derivatives.
int neural_expm_frechet(const Source* A, const Source* E, int64_t count, const Ladder* ladder, const uint8_t* level,
                        real* out, int64_t threads) {
  return guarded(count, threads, [&](int64_t first, int64_t last) {
    const Workspace workspace(room<Lanes>(*ladder, 2));
    uint8_t used[TILE];
    for (int64_t tile = first; tile < last; tile += TILE) {
      const int length = int(std::min<int64_t>(TILE, last - tile));
      for (int i = 0; i < length; ++i) used[i] = std::max(level[tile + i], uint8_t(ladder->least));
      int rest = 0;
      for (; rest + W <= length && alike(*ladder, used + rest); rest += W) {
        int64_t at[W];
        std::iota(at, at + W, tile + rest);
        evaluate_register<2>(*A, *E, at, W, ladder->nets[used[rest]], workspace.get(), out);
      }
      evaluate_tile<2>(*A, *E, tile + rest, length - rest, *ladder, used + rest, workspace.get(), out);
    }
    return 0;
  });
}
}
