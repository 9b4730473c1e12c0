plugins {
    alias(libs.plugins.android.application)
}

android {
    namespace = "dev.edgekd.sample"
    compileSdk = libs.versions.compileSdk.get().toInt()

    defaultConfig {
        applicationId = "dev.edgekd.sample"
        minSdk = libs.versions.minSdk.get().toInt()
        targetSdk = libs.versions.compileSdk.get().toInt()
        versionCode = 1
        versionName = "1.0"
    }

    buildTypes {
        release {
            isMinifyEnabled = true
            isShrinkResources = true
            proguardFiles(getDefaultProguardFile("proguard-android-optimize.txt"))
        }
    }

    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_11
        targetCompatibility = JavaVersion.VERSION_11
    }

    // A model that is compressed in the APK cannot be mapped into memory: every app that uses the library says this.
    androidResources {
        noCompress += listOf("onnx", "tflite", "pte")
    }
}

dependencies {
    implementation(project(":library"))
}
