package org.tensorflow.lite;

public final class Tensor {
    public static class QuantizationParams {
        public float getScale() {
            return 2f;
        }

        public int getZeroPoint() {
            return -3;
        }
    }

    private final String name;
    private final DataType type;
    private final int[] shape;

    Tensor(String name, DataType type, int... shape) {
        this.name = name;
        this.type = type;
        this.shape = shape;
    }

    public String name() {
        return name;
    }

    public DataType dataType() {
        return type;
    }

    public int[] shape() {
        return shape;
    }

    public int numBytes() {
        int count = type == DataType.INT64 ? 8 : type == DataType.INT8 ? 1 : 4;
        for (int axis : shape) count *= axis;
        return count;
    }

    public QuantizationParams quantizationParams() {
        return new QuantizationParams();
    }
}
