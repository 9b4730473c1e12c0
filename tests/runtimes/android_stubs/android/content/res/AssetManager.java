package android.content.res;

import java.io.File;
import java.io.FileInputStream;
import java.io.FileNotFoundException;
import java.io.IOException;
import java.io.InputStream;

public class AssetManager {
    private final File folder;
    private final boolean compressed;

    public AssetManager(File folder, boolean compressed) {
        this.folder = folder;
        this.compressed = compressed;
    }

    public String[] list(String path) {
        String[] names = new File(folder, path).list();
        return names == null ? new String[0] : names;
    }

    public InputStream open(String path) throws IOException {
        return new FileInputStream(new File(folder, path));
    }

    public AssetFileDescriptor openFd(String path) throws IOException {
        if (compressed) throw new FileNotFoundException("it is probably compressed");
        return new AssetFileDescriptor(new File(folder, path));
    }
}
