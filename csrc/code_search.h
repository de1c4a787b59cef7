// The search for additive codes, once for all CPU levels; each includes it where its Lanes stand: 16 floats, one for
// every codeword of a codebook, with element-wise arithmetic that rounds after each operation.
//
// The search keeps, for the error e of the codes at hand, s[j][k] = <e, C[j][k]> and sums[t] = <u_t, e>. With them the
// cost of setting code j to k is |C_k|^2_A / 2 - <e + C_old, C_k>_A, less what does not depend on k.
class CodeSearch {
public:
    CodeSearch(const AdditiveBooks& books, const AdditiveRow& row)
        : m_(books.m), size_(m_ * kSub), books_(books), row_(row), half_(row.scratch), sums_(half_ + size_) {
        for (std::size_t j = 0; j < m_; ++j) {
            float squares[kSub];
            for (std::size_t k = 0; k < kSub; ++k) squares[k] = own(j, k)[k];
            Lanes norms = Lanes::load(squares);
            for (std::size_t t = 0; t < row_.nterms; ++t) norms = norms + term(j, t) * term(j, t);
            (Lanes(0.5f) * norms).store(half_ + j * kSub);
        }
    }

    // Chooses the codes one after the other, each nearest to what the earlier ones left over.
    void start_greedy() {
        reset();
        for (std::size_t j = 0; j < m_; ++j) {
            float half[kSub];
            for (std::size_t k = 0; k < kSub; ++k) half[k] = 0.5f * own(j, k)[k];
            const Lanes costs = Lanes::load(half) - Lanes::load(s() + j * kSub);
            add(j, codes_[j] = static_cast<std::uint8_t>(costs.first(costs.least())));
        }
    }

    void start_at(const std::uint8_t* codes) {
        reset();
        for (std::size_t j = 0; j < m_; ++j) add(j, codes_[j] = codes[j]);
    }

    // Sets each code to its best given the others, in turn from code j, until none changes or `sweeps` passes are over.
    void descend(std::size_t j, std::size_t sweeps) {
        std::size_t settled = 0;
        for (std::size_t left = sweeps * m_; left > 0 && settled < m_; --left, j = after(j))
            settled = improve(j) ? 0 : settled + 1;
    }

    std::size_t after(std::size_t j) const { return j + 1 < m_ ? j + 1 : 0; }

    void change(std::size_t j, std::size_t code) {
        const std::size_t old = codes_[j];
        const float *from = gram(j, old), *to = gram(j, code);
        for (std::size_t i = 0; i < size_; i += kSub)
            (Lanes::load(s() + i) + (Lanes::load(from + i) - Lanes::load(to + i))).store(s() + i);
        const float* terms = row_.terms + j * row_.nterms * kSub;
        for (std::size_t t = 0; t < row_.nterms; ++t, terms += kSub) sums_[t] += terms[old] - terms[code];
        codes_[j] = static_cast<std::uint8_t>(code);
    }

    // e^T A e less |y|^2, as |e|^2 = |y|^2 - <y, y - e> - <e, y - e>.
    float cost() const {
        float total = 0.0f;
        for (std::size_t j = 0; j < m_; ++j) {
            const std::size_t at = j * kSub + codes_[j];
            total -= row_.products[at] + s()[at];
        }
        for (std::size_t t = 0; t < row_.nterms; ++t) total += sums_[t] * sums_[t];
        return total;
    }

    void keep(std::uint8_t* codes) {
        std::memcpy(codes, codes_, m_);
        std::memcpy(kept(), sums_, state_bytes());
    }

    void restore(const std::uint8_t* codes) {
        std::memcpy(codes_, codes, m_);
        std::memcpy(sums_, kept(), state_bytes());
    }

    const std::uint8_t* codes() const { return codes_; }

private:
    const float* gram(std::size_t j, std::size_t k) const { return books_.gram + (j * kSub + k) * size_; }
    const float* own(std::size_t j, std::size_t k) const { return books_.own + (j * kSub + k) * kSub; }
    Lanes term(std::size_t j, std::size_t t) const { return Lanes::load(row_.terms + (j * row_.nterms + t) * kSub); }
    float* s() const { return sums_ + row_.nterms; }
    float* kept() const { return s() + size_; }
    std::size_t state_bytes() const { return (row_.nterms + size_) * sizeof(float); }

    // The state of no code at all.
    void reset() {
        std::copy_n(row_.products, size_, s());
        std::copy_n(row_.offsets, row_.nterms, sums_);
    }

    void add(std::size_t j, std::size_t code) {
        const float* to = gram(j, code);
        for (std::size_t i = 0; i < size_; i += kSub) (Lanes::load(s() + i) - Lanes::load(to + i)).store(s() + i);
        const float* terms = row_.terms + j * row_.nterms * kSub;
        for (std::size_t t = 0; t < row_.nterms; ++t, terms += kSub) sums_[t] -= terms[code];
    }

    // Returns whether code j changed.
    bool improve(std::size_t j) {
        const std::size_t old = codes_[j];
        Lanes costs = Lanes::load(half_ + j * kSub) - Lanes::load(s() + j * kSub) - Lanes::load(own(j, old));
        const float* terms = row_.terms + j * row_.nterms * kSub;
        for (std::size_t t = 0; t < row_.nterms; ++t, terms += kSub)
            costs = costs - Lanes(sums_[t] + terms[old]) * Lanes::load(terms);
        float by_code[kSub];
        costs.store(by_code);
        const float least = costs.least();
        if (!(least < by_code[old])) return false;
        change(j, costs.first(least));
        return true;
    }

    std::size_t m_, size_;
    AdditiveBooks books_;
    AdditiveRow row_;
    float *half_, *sums_;  // behind sums_: s, then both as they were kept
    std::uint8_t codes_[kMaxM];
};

// Xorshift64 (Marsaglia 2003).
inline std::uint64_t next_random(std::uint64_t state) {
    state ^= state << 13;
    state ^= state >> 7;
    return state ^ state << 17;
}

void search_codes(const AdditiveBooks& books, const AdditiveRow& row, const AdditiveEffort& effort,
                  std::uint8_t* codes) noexcept {
    CodeSearch search(books, row);
    if (effort.fresh)
        search.start_greedy();
    else
        search.start_at(codes);
    std::uint64_t random = 0x9E3779B97F4A7C15u;
    for (std::size_t j = 0; j < books.m; ++j) random = next_random(random ^ search.codes()[j]);
    search.descend(0, effort.sweeps);
    search.keep(codes);
    float least = search.cost();
    for (std::size_t round = 0; round < effort.rounds; ++round) {
        std::size_t j = 0;
        for (std::size_t flip = 0; flip < kFlips; ++flip) {
            random = next_random(random);
            j = (random >> 32) % books.m;
            search.change(j, (random >> 16) % kSub);
        }
        // The others come first, or the code changed last would just turn back.
        search.descend(search.after(j), effort.sweeps);
        const float cost = search.cost();
        if (cost < least) {
            least = cost;
            search.keep(codes);
        } else {
            search.restore(codes);
        }
    }
}
