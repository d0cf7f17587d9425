// Max pooling of a channel, many windows by one instruction: the edit "max-pooling" of tools/caffe_edits.py puts
// this text into Caffe's src/caffe/layers/pooling_layer.cpp. Values and mask are those of BVLC's loops to the bit: a
// window sees its pixels in the order of rows and columns, and a pixel is taken when it is greater than all before, so
// the first of equal ones stays and NaN is passed over.
//
// With a stride of s, pixel (k, l) of a window is pixel (k / s, l / s), counted from the window's own place, of the image
// that rows k % s, k % s + s, ... and columns l % s, l % s + s, ... make. So a channel is first copied into s x s such
// "phases", borders included; then the pixels (k, l) of all windows lie one behind the other, row after row of windows,
// and are compared without a branch. What lies between two rows of windows is compared too, and not copied out.
template <typename Dtype>
class MaxPoolChannel {
 public:
  MaxPoolChannel(int height, int width, int kernel_h, int kernel_w,
      int stride_h, int stride_w, int pad_h, int pad_w, int pooled_height,
      int pooled_width)
      : height_(height), width_(width), stride_h_(stride_h),
        stride_w_(stride_w), pad_h_(pad_h), pad_w_(pad_w),
        pooled_height_(pooled_height), pooled_width_(pooled_width),
        phases_h_(min(stride_h, kernel_h)), phases_w_(min(stride_w, kernel_w)),
        rows_(pooled_height + (kernel_h - 1) / stride_h),
        columns_(pooled_width + (kernel_w - 1) / stride_w),
        windows_((pooled_height * columns_ + kLanes - 1) / kLanes * kLanes),
        first_(windows_), best_(windows_), index_(windows_) {
    // What no pixel is copied to, the border, is never greater.
    phase_.assign(phases_h_ * phases_w_ * rows_ * columns_ + windows_,
        Dtype(-FLT_MAX));
    for (int ph = 0; ph < pooled_height; ++ph) {
      for (int x = 0; x < columns_; ++x) {
        first_[ph * columns_ + x] =
            (ph * stride_h - pad_h) * width + x * stride_w - pad_w;
      }
    }
    for (int k = 0; k < kernel_h; ++k) {
      for (int l = 0; l < kernel_w; ++l) {
        const int phase = (k % stride_h) * phases_w_ + l % stride_w;
        place_.push_back((phase * rows_ + k / stride_h) * columns_
            + l / stride_w);
        step_.push_back(k * width + l);
      }
    }
  }

  // The greatest pixel of each window and its index; -FLT_MAX and -1 where no pixel is greater than that.
  template <typename Index>
  void operator()(const Dtype* bottom, Dtype* top, Index* mask) {
    Split(bottom);
    for (int start = 0; start < windows_; start += kLanes) {
      Compare(start);
    }
    for (int ph = 0; ph < pooled_height_; ++ph) {
      const Dtype* best = &best_[ph * columns_];
      const Integer* index = &index_[ph * columns_];
      for (int pw = 0; pw < pooled_width_; ++pw) {
        top[ph * pooled_width_ + pw] = best[pw];
        mask[ph * pooled_width_ + pw] = index[pw];
      }
    }
  }

 private:
  // What one instruction compares, in the vectors of GCC and Clang: of a loop compilers make that, or something slower
  // than before. Indices are as wide as values, because one is chosen by the comparison of the other.
#if defined(__AVX512F__)
  static const int kBytes = 64;
#elif defined(__AVX2__)
  static const int kBytes = 32;
#else
  static const int kBytes = 16;
#endif
  static const int kLanes = kBytes / sizeof(Dtype);
  typedef typename std::conditional<sizeof(Dtype) == 4, int32_t, int64_t>::type Integer;
  typedef Dtype Values __attribute__((vector_size(kBytes)));
  typedef Integer Indices __attribute__((vector_size(kBytes)));

  // Copy the channel into the phases.
  void Split(const Dtype* bottom) {
    for (int i = 0; i < phases_h_; ++i) {
      for (int j = 0; j < phases_w_; ++j) {
        Dtype* phase = &phase_[(i * phases_w_ + j) * rows_ * columns_];
        // The first and the last column of the phase that lie in the image.
        const int begin = j < pad_w_ ? (pad_w_ - j + stride_w_ - 1) / stride_w_
            : 0;
        const int end = min(columns_,
            (width_ + pad_w_ - j + stride_w_ - 1) / stride_w_);
        for (int y = 0; y < rows_; ++y) {
          const int h = y * stride_h_ + i - pad_h_;
          if (h < 0 || h >= height_) { continue; }
          const Dtype* row = bottom + h * width_ + j - pad_w_;
          Dtype* to = phase + y * columns_;
          if (stride_w_ == 1) {
            for (int x = begin; x < end; ++x) { to[x] = row[x]; }
          } else if (stride_w_ == 2) {
            for (int x = begin; x < end; ++x) { to[x] = row[2 * x]; }
          } else {
            for (int x = begin; x < end; ++x) { to[x] = row[stride_w_ * x]; }
          }
        }
      }
    }
  }

  // The greatest pixels of the windows from `start` on, as many as one instruction compares.
  void Compare(int start) {
    Values best = Values() - Dtype(FLT_MAX);
    Indices index = Indices() - 1, first;
    memcpy(&first, &first_[start], sizeof(first));
    const int pixels = place_.size();
    for (int i = 0; i < pixels; ++i) {
      Values value;
      memcpy(&value, &phase_[place_[i] + start], sizeof(value));
      const Indices greater = (Indices)(value > best);
      best = greater ? value : best;
      index = greater ? first + step_[i] : index;
    }
    memcpy(&best_[start], &best, sizeof(best));
    memcpy(&index_[start], &index, sizeof(index));
  }

  const int height_, width_, stride_h_, stride_w_, pad_h_, pad_w_;
  const int pooled_height_, pooled_width_;
  // The size of a phase, and the number of windows with what lies between their rows.
  const int phases_h_, phases_w_, rows_, columns_, windows_;
  // Of each window, the index of its first pixel.
  vector<Integer> first_;
  vector<Dtype> best_;
  vector<Integer> index_;
  vector<Dtype> phase_;
  // Of each pixel of a window: where that of the first window lies in the phases, and its index from the window's first.
  vector<int> place_;
  vector<Integer> step_;
};
