// Server B in a page of Node: asks Server A for room, waits for the call, sends the video, confirms.
//
//   npm install && npm start        (Server A runs on http://localhost:3000: `make run`)

import { createReadStream } from 'node:fs';
import { stat } from 'node:fs/promises';
import http from 'node:http';
import { fileURLToPath } from 'node:url';
import axios from 'axios';

const {
  SERVER_A = 'http://localhost:3000',
  PORT = '3002',
  VIDEO = fileURLToPath(new URL('../clip.mp4', import.meta.url)),
  VIDEO_ID = '2',
  SPACE = '50MB',
  TIMEOUT_SECONDS = '120',
} = process.env;

const videoId = /^\d+$/.test(VIDEO_ID) ? Number(VIDEO_ID) : VIDEO_ID;
const readyPath = '/api/v1/backup/serverAisReadyForBackup';

/** Sends the bytes as they come from the disk, then asks Server A to keep them for good. */
async function backUp(offer) {
  const { size } = await stat(VIDEO);
  const sent = await axios.post(offer.linkForServerBtoSendBackupToSeverA, createReadStream(VIDEO), {
    headers: { 'Content-Type': 'video/mp4', 'Content-Length': size },
    maxBodyLength: Infinity,
    maxRedirects: 0, // with redirects axios would hold the whole video in memory
  });
  console.log('Video sent:', sent.data);
  const kept = await axios.post(offer.linkForServerBtoCompleteBackupToSeverA, {
    videoId: offer.videoId,
    success: true,
  });
  console.log('Backup completed:', kept.data);
  return kept.data.success === true;
}

function end(code, ...words) {
  (code ? console.error : console.log)(...words);
  process.exit(code);
}

const why = (error) => error.response?.data?.message ?? error.message;

let started = false;
const serverB = http.createServer(async (request, response) => {
  const answer = (status, body) => {
    response.writeHead(status, { 'Content-Type': 'application/json' });
    response.end(JSON.stringify(body));
  };
  if (request.method !== 'POST' || request.url !== readyPath) {
    answer(404, { success: false, message: 'Not found' });
    return;
  }
  try {
    let text = '';
    for await (const chunk of request.setEncoding('utf8')) {
      text += chunk;
      if (text.length > 65536) throw new Error('the notice is too long');
    }
    const offer = JSON.parse(text);
    const links = [
      offer.linkForServerBtoSendBackupToSeverA,
      offer.linkForServerBtoCompleteBackupToSeverA,
    ];
    // A video goes to the server that was asked, whoever sends the notice.
    if (links.some((link) => new URL(link).origin !== new URL(SERVER_A).origin)) {
      answer(403, { success: false, message: 'Those links are not on Server A' });
      return;
    }
    if (String(offer.videoId) !== String(videoId)) {
      answer(404, { success: false, message: 'No such video' });
      return;
    }
    answer(200, { success: true, message: 'Sending' });
    if (started) return; // the same notice again: its first answer was lost
    started = true;
    console.log('Server A is ready');
    backUp(offer).then(
      (success) => end(success ? 0 : 1, success ? 'Done' : 'Server A did not keep the video'),
      (error) => end(1, 'The backup failed:', why(error)),
    );
  } catch (error) {
    answer(400, { success: false, message: error.message });
  }
});

serverB.on('error', (error) => end(1, 'Server B cannot listen:', error.message));
serverB.listen(Number(PORT), 'localhost', async () => {
  try {
    const { data } = await axios.post(`${SERVER_A}/api/v1/backup/can-accept-backup`, {
      videoId,
      diskEmptySpaceRequire: SPACE,
      linkForServerAtoNoticeServerBWhenServerAIsReady: `http://localhost:${PORT}${readyPath}`,
    });
    if (!data.success) end(1, 'Server A cannot accept the backup:', data.message);
    console.log('Backup request accepted!');
  } catch (error) {
    end(1, 'Server A did not answer:', why(error));
  }
});

setTimeout(() => end(1, 'Server A did not come back in time'), Number(TIMEOUT_SECONDS) * 1000);
