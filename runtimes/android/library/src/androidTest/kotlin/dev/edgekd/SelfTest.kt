package dev.edgekd

import android.util.Log
import androidx.test.ext.junit.runners.AndroidJUnit4
import androidx.test.platform.app.InstrumentationRegistry
import org.junit.Assert.assertTrue
import org.junit.Test
import org.junit.runner.RunWith

/** `./gradlew :library:connectedAndroidTest`: whether this device gives the ids and outputs that were verified. */
@RunWith(AndroidJUnit4::class)
class SelfTest {
    @Test
    fun theGoldenTextsComeOutAsVerified() {
        val context = InstrumentationRegistry.getInstrumentation().targetContext
        openBundle(AssetFiles(context)).use { model ->
            val report = model.selfTest()
            Log.i("edgekd", report.toString())
            assertTrue(report.toString(), report.passed)
        }
    }
}
