package org.tensorflow.lite;

import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.Map;

/**
 * Stands in for LiteRT's Interpreter, of which there is no package for a desktop: the methods that the engine calls,
 * over a model that the "file" describes in a line: FILE := KIND TYPE, of which KIND is "one" (an input for each of two
 * unnamed tensors, of any length) or "two" (signatures of the lengths 8 and 16), and TYPE the output's. The output has a
 * row for each token: the id, and the mask.
 */
public final class Interpreter implements AutoCloseable {
    public static class Options {
        public Options setNumThreads(int threads) {
            return this;
        }
    }

    private static final int[] LENGTHS = {8, 16};
    private final boolean two;
    private final DataType type;

    public Interpreter(ByteBuffer model, Options options) {
        if (!model.isDirect()) throw new IllegalArgumentException("the model is not in a direct buffer");
        byte[] bytes = new byte[model.remaining()];
        model.duplicate().get(bytes);
        String[] said = new String(bytes).trim().split(" ");
        if (said.length != 2) throw new IllegalArgumentException("this is no model");
        two = said[0].equals("two");
        type = DataType.valueOf(said[1]);
    }

    public String[] getSignatureKeys() {
        return two ? new String[] {"serving_8", "serving_16"} : new String[] {"serving_default"};
    }

    public String[] getSignatureOutputs(String key) {
        return new String[] {"output_0"};
    }

    public int getInputTensorCount() {
        return 2;
    }

    // The order of the tensors is not that of their names.
    public Tensor getInputTensor(int index) {
        return new Tensor(index == 0 ? "args_1" : "args_0", DataType.INT32, 1, LENGTHS[0]);
    }

    public Tensor getOutputTensor(int index) {
        return new Tensor("output_0", type, 1, LENGTHS[0], 2);
    }

    public Tensor getInputTensorFromSignature(String name, String key) {
        return new Tensor(name, DataType.INT64, 1, lengthOf(key));
    }

    public Tensor getOutputTensorFromSignature(String name, String key) {
        return new Tensor(name, type, 1, lengthOf(key), 2);
    }

    public void runForMultipleInputsOutputs(Object[] inputs, Map<Integer, Object> outputs) {
        fill((ByteBuffer) inputs[1], (ByteBuffer) inputs[0], 4, (ByteBuffer) outputs.get(0));
    }

    public void runSignature(Map<String, Object> inputs, Map<String, Object> outputs, String key) {
        ByteBuffer ids = (ByteBuffer) inputs.get("input_ids");
        if (ids.remaining() != 8 * lengthOf(key)) throw new IllegalArgumentException("a row of another length");
        fill(ids, (ByteBuffer) inputs.get("attention_mask"), 8, (ByteBuffer) outputs.get("output_0"));
    }

    private int lengthOf(String key) {
        return LENGTHS[key.equals("serving_8") ? 0 : 1];
    }

    private void fill(ByteBuffer ids, ByteBuffer mask, int bytes, ByteBuffer into) {
        if (ids.order() != ByteOrder.nativeOrder()) throw new IllegalArgumentException("not in the native order");
        while (ids.remaining() > 0) {
            put(into, bytes == 8 ? ids.getLong() : ids.getInt());
            put(into, bytes == 8 ? mask.getLong() : mask.getInt());
        }
    }

    private void put(ByteBuffer into, long value) {
        if (type == DataType.INT8) into.put((byte) (value / 2 - 3));
        else into.putFloat(value);
    }

    @Override
    public void close() {}
}
