package android.content;

import android.content.pm.PackageManager;
import android.content.res.AssetManager;
import java.io.File;

/** Stands in for Android's: what the library asks of it, over folders. */
public class Context {
    private final AssetManager assets;
    private final File files;

    public Context(File assets, File files, boolean compressed) {
        this.assets = new AssetManager(assets, compressed);
        this.files = files;
    }

    public Context getApplicationContext() {
        return this;
    }

    public AssetManager getAssets() {
        return assets;
    }

    public File getNoBackupFilesDir() {
        return files;
    }

    public String getPackageName() {
        return "an.app";
    }

    public PackageManager getPackageManager() {
        return new PackageManager();
    }
}
