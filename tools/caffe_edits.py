"""Our edits to Caffe's source, each small, named and with its reason.

An edit replaces one piece of text by another in one file, and must find the old text exactly once: a source that is
not the one this was written for stops the build instead of being built half mended. In somebody's own checkout the
text may be mended already, and its Python files may be others.
"""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Edit:
    """`only`: the builds that have it, "cuda", "cudnn", "checkout" (BVLC's own tree, without Debian's patches) or "tuned" (all
    but plain ones); "" is all.

    `mended`: text that stands in the file where others have mended the same.
    """

    name: str
    reason: str
    file: str
    old: str
    new: str
    only: str = ""
    mended: str = ""


def _before_cuda_13(lines):
    return f"#if CUDART_VERSION < 13000\n{lines}#endif\n"


_CLOCK = '  LOG(INFO) << "Clock rate:                    " << prop.clockRate;\n'
_OVERLAP = """\
  LOG(INFO) << "Concurrent copy and execution: "
      << (prop.deviceOverlap ? "Yes" : "No");
"""
_TIMEOUT = """\
  LOG(INFO) << "Kernel execution timeout:      "
      << (prop.kernelExecTimeoutEnabled ? "Yes" : "No");
"""
_CUDA_13 = "CUDA 13 removed this field of cudaDeviceProp, which DeviceQuery prints."

_CHOICE = """\
// cuDNN 8 removed the functions that choose a convolution's algorithm within
// a limit of workspace. Here they are again, on what it has instead: the
// algorithms in the order of their expected speed, of which the first that
// fits is taken.
#if CUDNN_VERSION >= 8000
enum {
  CUDNN_CONVOLUTION_FWD_SPECIFY_WORKSPACE_LIMIT,
  CUDNN_CONVOLUTION_BWD_FILTER_SPECIFY_WORKSPACE_LIMIT,
  CUDNN_CONVOLUTION_BWD_DATA_SPECIFY_WORKSPACE_LIMIT
};

template <typename Perf, typename Algo>
inline cudnnStatus_t cudnnFirstThatFits(cudnnStatus_t status,
    const Perf* found, int count, size_t limit, Algo* algo) {
  if (status != CUDNN_STATUS_SUCCESS) { return status; }
  for (int i = 0; i < count; ++i) {
    if (found[i].status == CUDNN_STATUS_SUCCESS && found[i].memory <= limit) {
      *algo = found[i].algo;
      return CUDNN_STATUS_SUCCESS;
    }
  }
  return CUDNN_STATUS_NOT_SUPPORTED;
}

#define CUDNN_ALGORITHM_CHOICE(Kind, Short, COUNT, First, Second, Third) \\
  inline cudnnStatus_t cudnnGetConvolution##Kind##Algorithm( \\
      cudnnHandle_t handle, First a, Second b, \\
      cudnnConvolutionDescriptor_t conv, Third c, int preference, \\
      size_t limit, cudnnConvolution##Short##Algo_t* algo) { \\
    cudnnConvolution##Short##AlgoPerf_t found[COUNT]; \\
    int count = 0; \\
    const cudnnStatus_t status = cudnnGetConvolution##Kind##Algorithm_v7( \\
        handle, a, b, conv, c, COUNT, &count, found); \\
    return cudnnFirstThatFits(status, found, count, limit, algo); \\
  }
CUDNN_ALGORITHM_CHOICE(Forward, Fwd, CUDNN_CONVOLUTION_FWD_ALGO_COUNT,
    cudnnTensorDescriptor_t, cudnnFilterDescriptor_t, cudnnTensorDescriptor_t)
CUDNN_ALGORITHM_CHOICE(BackwardFilter, BwdFilter,
    CUDNN_CONVOLUTION_BWD_FILTER_ALGO_COUNT,
    cudnnTensorDescriptor_t, cudnnTensorDescriptor_t, cudnnFilterDescriptor_t)
CUDNN_ALGORITHM_CHOICE(BackwardData, BwdData,
    CUDNN_CONVOLUTION_BWD_DATA_ALGO_COUNT,
    cudnnFilterDescriptor_t, cudnnTensorDescriptor_t, cudnnTensorDescriptor_t)
#undef CUDNN_ALGORITHM_CHOICE
#endif

"""
_NAMESPACES = "namespace caffe {\n\nnamespace cudnn {\n\ntemplate <typename Dtype> class dataType;"
_CONVOLUTION = """\
      pad_h, pad_w, stride_h, stride_w, 1, 1, CUDNN_CROSS_CORRELATION,
      dataType<Dtype>::type));
"""
_BOOST = """\
    STRING( REGEX REPLACE "[^0-9]" "" boost_py_version ${version} )
    find_package(Boost 1.46 COMPONENTS "python-py${boost_py_version}")
    set(Boost_PYTHON_FOUND ${Boost_PYTHON-PY${boost_py_version}_FOUND})

    while"""

_DETECT_CSV = """\
        class_cols = ['class{}'.format(x) for x in range(NUM_OUTPUT)]
        df[class_cols] = pd.DataFrame(
            data=np.vstack(df['feat']), index=df.index, columns=class_cols)
        df.to_csv(args.output_file, cols=COORD_COLS + class_cols)
"""

_POOLING = "src/caffe/layers/pooling_layer.cpp"
_POOLING_INCLUDES = "#include <algorithm>\n#include <cfloat>\n"
_BEFORE_FORWARD = "// TODO(Yangqing): Is there a faster way to do pooling in the channel-first\n"
_MAX_POOLING = """\
    // Initialize
    if (use_top_mask) {
      top_mask = top[1]->mutable_cpu_data();
      caffe_set(top_count, Dtype(-1), top_mask);
    } else {
      mask = max_idx_.mutable_cpu_data();
      caffe_set(top_count, -1, mask);
    }
    caffe_set(top_count, Dtype(-FLT_MAX), top_data);
    // The main loop
    for (int n = 0; n < bottom[0]->num(); ++n) {
      for (int c = 0; c < channels_; ++c) {
        for (int ph = 0; ph < pooled_height_; ++ph) {
          for (int pw = 0; pw < pooled_width_; ++pw) {
            int hstart = ph * stride_h_ - pad_h_;
            int wstart = pw * stride_w_ - pad_w_;
            int hend = min(hstart + kernel_h_, height_);
            int wend = min(wstart + kernel_w_, width_);
            hstart = max(hstart, 0);
            wstart = max(wstart, 0);
            const int pool_index = ph * pooled_width_ + pw;
            for (int h = hstart; h < hend; ++h) {
              for (int w = wstart; w < wend; ++w) {
                const int index = h * width_ + w;
                if (bottom_data[index] > top_data[pool_index]) {
                  top_data[pool_index] = bottom_data[index];
                  if (use_top_mask) {
                    top_mask[pool_index] = static_cast<Dtype>(index);
                  } else {
                    mask[pool_index] = index;
                  }
                }
              }
            }
          }
        }
        // compute offset
        bottom_data += bottom[0]->offset(0, 1);
        top_data += top[0]->offset(0, 1);
        if (use_top_mask) {
          top_mask += top[0]->offset(0, 1);
        } else {
          mask += top[0]->offset(0, 1);
        }
      }
    }
    break;
"""
_MAX_POOLING_IN_VECTORS = """\
    if (use_top_mask) {
      top_mask = top[1]->mutable_cpu_data();
    } else {
      mask = max_idx_.mutable_cpu_data();
    }
    {
      MaxPoolChannel<Dtype> pool(height_, width_, kernel_h_, kernel_w_,
          stride_h_, stride_w_, pad_h_, pad_w_, pooled_height_, pooled_width_);
      const int windows = pooled_height_ * pooled_width_;
      for (int i = 0; i < bottom[0]->num() * channels_; ++i) {
        const Dtype* channel = bottom_data + i * height_ * width_;
        if (use_top_mask) {
          pool(channel, top_data + i * windows, top_mask + i * windows);
        } else {
          pool(channel, top_data + i * windows, mask + i * windows);
        }
      }
    }
    break;
"""

EDITS = (
    Edit(
        name="protobuf-total-bytes-limit",
        reason="protobuf 3.21 takes the limit alone; the second argument (a warning threshold) was removed.",
        file="src/caffe/util/io.cpp",
        old="coded_input->SetTotalBytesLimit(kProtoReadBytesLimit, 536870912);",
        new="coded_input->SetTotalBytesLimit(kProtoReadBytesLimit);",
    ),
    Edit(
        name="boost-python-name",
        reason="Boost 1.67 and later call the library boost_python311, not boost_python-py311; pycaffe is passed over without it.",
        file="cmake/Dependencies.cmake",
        old=_BOOST,
        new='    STRING( REGEX REPLACE "^([0-9]+)[.]([0-9]+).*" "\\\\1\\\\2" boost_py_version ${version} )\n'
        '    find_package(Boost 1.46 COMPONENTS "python${boost_py_version}")\n'
        "    set(Boost_PYTHON_FOUND ${Boost_PYTHON${boost_py_version}_FOUND})\n\n    while",
        only="checkout",
        mended='find_package(Boost 1.46 COMPONENTS "python${boost_py_version}")',
    ),
    Edit(
        name="movable",
        reason="The binary and pycaffe find libcaffe from where they lie, so that the folder can be moved or copied.",
        file="cmake/Misc.cmake",
        old="set(CMAKE_INSTALL_RPATH ${CMAKE_INSTALL_PREFIX}/",
        new="set(CMAKE_INSTALL_RPATH $ORIGIN/../lib $ORIGIN/../../lib) # ${CMAKE_INSTALL_PREFIX}/",
    ),
    Edit(
        name="load-image",
        reason="scikit-image renamed the argument, and no longer takes the old name.",
        file="python/caffe/io.py",
        old="as_grey=not color",
        new="as_gray=not color",
    ),
    Edit(
        name="resize-image",
        reason="Since 0.15 scikit-image blurs an image before it shrinks it; pycaffe's results were had without.",
        file="python/caffe/io.py",
        old="order=interp_order, mode='constant')",
        new="order=interp_order, mode='constant', anti_aliasing=False)",
    ),
    Edit(
        name="array-to-datum",
        reason="numpy 2.3 removed tostring.",
        file="python/caffe/io.py",
        old="arr.tostring()",
        new="arr.tobytes()",
    ),
    Edit(
        name="datum-to-array",
        reason="numpy 2.3 no longer takes bytes in fromstring. The array is a copy that can be written to, as it was.",
        file="python/caffe/io.py",
        old="np.fromstring(datum.data, dtype=np.uint8).reshape(",
        new="np.frombuffer(datum.data, dtype=np.uint8).copy().reshape(",
    ),
    Edit(
        name="detect-windows",
        reason="It goes through them twice; in Python 3 the zip of detect_selective_search is used up by then.",
        file="python/caffe/detector.py",
        old="        # Extract windows.\n",
        new="        # Extract windows.\n        images_windows = list(images_windows)\n",
    ),
    Edit(
        name="detector-context",
        reason="Since 1.12 numpy takes no floats as indices.",
        file="python/caffe/detector.py",
        old="            box = np.clip(box, 0., [im_h, im_w, im_h, im_w])\n",
        new="            box = np.clip(box, 0., [im_h, im_w, im_h, im_w]).astype(int)\n",
    ),
    Edit(
        name="detect-csv",
        reason="detect.py failed at its end: it names a column and a constant that it no longer has, and pandas renamed cols.",
        file="python/detect.py",
        old=_DETECT_CSV,
        new=_DETECT_CSV.replace("range(NUM_OUTPUT)", "range(len(df['prediction'].iloc[0]))")
        .replace("df['feat']", "df['prediction']")
        .replace("cols=", "columns="),
    ),
    Edit(
        name="detect-h5",
        reason="pandas 3 takes the key by name alone.",
        file="python/detect.py",
        old="df.to_hdf(args.output_file, 'df', mode='w')",
        new="df.to_hdf(args.output_file, key='df', mode='w')",
    ),
    Edit("cuda-13-clock-rate", _CUDA_13, "src/caffe/common.cpp", _CLOCK, _before_cuda_13(_CLOCK), only="cuda"),
    Edit("cuda-13-device-overlap", _CUDA_13, "src/caffe/common.cpp", _OVERLAP, _before_cuda_13(_OVERLAP), only="cuda"),
    Edit("cuda-13-timeout", _CUDA_13, "src/caffe/common.cpp", _TIMEOUT, _before_cuda_13(_TIMEOUT), only="cuda"),
    Edit(
        name="cudnn-8-version",
        reason="cuDNN 8 moved its version to a header of its own; without one, CMake takes it for older than 3.",
        file="cmake/Cuda.cmake",
        old="    file(READ ${CUDNN_INCLUDE}/cudnn.h CUDNN_VERSION_FILE_CONTENTS)\n",
        new="    file(READ ${CUDNN_INCLUDE}/cudnn.h CUDNN_VERSION_FILE_CONTENTS)\n"
        "    if(EXISTS ${CUDNN_INCLUDE}/cudnn_version.h)\n"
        "      file(READ ${CUDNN_INCLUDE}/cudnn_version.h CUDNN_VERSION_FILE_CONTENTS)\n"
        "    endif()\n",
        only="cudnn",
    ),
    Edit(
        name="cuda-13-thrust",
        reason="CUDA 13 moved Thrust's headers to where only nvcc looks; nothing in this file uses them.",
        file="src/caffe/layers/cudnn_softmax_layer.cpp",
        old='#include "thrust/device_vector.h"\n',
        new="// thrust/device_vector.h is not used\n",
        only="cudnn",
    ),
    Edit(
        name="cudnn-8-algorithms",
        reason="cuDNN 8 removed cudnnGetConvolution*Algorithm; Caffe's limit of workspace, 8 MB a stream, is kept.",
        file="include/caffe/util/cudnn.hpp",
        old=_NAMESPACES,
        new=_CHOICE + _NAMESPACES,
        only="cudnn",
        mended="cudnnGetConvolutionForwardAlgorithm_v7",
    ),
    Edit(
        name="cudnn-8-float32",
        reason="Since cuDNN 8, newer GPUs round float32 to TF32's 10 bits in convolutions unless told not to.",
        file="include/caffe/util/cudnn.hpp",
        old=_CONVOLUTION,
        new=_CONVOLUTION
        + "#if CUDNN_VERSION >= 8000\n  CUDNN_CHECK(cudnnSetConvolutionMathType(*conv, CUDNN_FMA_MATH));\n#endif\n",
        only="cudnn",
        mended="CUDNN_FMA_MATH",
    ),
    Edit(
        name="max-pooling-includes",
        reason="What max-pooling needs.",
        file=_POOLING,
        old=_POOLING_INCLUDES,
        new=_POOLING_INCLUDES + "#include <cstring>\n#include <type_traits>\n",
        only="tuned",
    ),
    Edit(
        name="max-pooling",
        reason="A branch for each pixel of each window: a third of GoogLeNet's time on a CPU. Equal to the bit.",
        file=_POOLING,
        old=_BEFORE_FORWARD,
        new=(Path(__file__).parent / "max_pooling.hpp").read_text() + "\n" + _BEFORE_FORWARD,
        only="tuned",
    ),
    Edit(
        name="max-pooling-forward",
        reason="Calls max-pooling.",
        file=_POOLING,
        old=_MAX_POOLING,
        new=_MAX_POOLING_IN_VECTORS,
        only="tuned",
    ),
)


def edits_for(*builds):
    """The edits of a build that is all of `builds`, of "cuda", "cudnn", "checkout" and "tuned"."""
    return tuple(edit for edit in EDITS if edit.only in ("", *builds))


def apply_edits(source, edits=EDITS, mended_allowed=False):
    """Apply `edits` to the Caffe source tree `source` (a path).

    Where `mended_allowed`, an edit is passed over whose new text is there, or what others wrote for it; and one of a Python
    file that has no such text: the build does without.
    Raises ValueError naming the edit when its old text does not stand exactly once in its file; no file has been
    written by then.
    """
    texts = {}
    for edit in edits:
        path = Path(source) / edit.file
        if not path.is_file():
            raise ValueError(f"edit {edit.name!r}: {path} does not exist; this is not the Caffe source it was written for")
        text = texts.get(path) or path.read_text()
        if mended_allowed and (edit.new in text or (edit.mended and edit.mended in text)):
            continue
        count = text.count(edit.old)
        if mended_allowed and count == 0 and edit.file.startswith("python/"):
            continue
        if count != 1:
            raise ValueError(f"edit {edit.name!r} must apply exactly once in {path}, but its text was found {count} times")
        texts[path] = text.replace(edit.old, edit.new)
    for path, text in texts.items():
        path.write_text(text)
